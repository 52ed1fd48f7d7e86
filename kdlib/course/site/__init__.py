"""The course as a web site, by Sphinx: `conf.py` its settings, the modules what Sphinx has to be told."""
