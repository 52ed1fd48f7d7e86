"""The slides for the 90-minute route, by sphinx-revealjs: a run of Sphinx of its own, for both languages."""
