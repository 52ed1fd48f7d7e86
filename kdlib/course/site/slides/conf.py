"""Settings of the slides, as Sphinx reads them; one run makes those of both languages."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]

project = "Knowledge distillation"
language = "en"
root_doc = "notebooks/slides"
include_patterns = ["notebooks/slides.md", "notebooks/zh/slides.md"]
# Sphinx would walk through all of these in search of pages.
exclude_patterns = [entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name != "notebooks"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}  # so that links to notebooks lead to pages
suppress_warnings = ["toc.not_included"]  # no slides lead to the Chinese ones

extensions = [
    "myst_parser", "sphinx_revealjs", "kdlib.course.site.formulas", "kdlib.course.site.languages",
    "kdlib.course.site.slides.deck",
]  # fmt: skip
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True

html_math_renderer = "mathml"
html_favicon = "../static/favicon.svg"
revealjs_html_theme = "revealjs-simple"
revealjs_static_path = ["slides.css"]
revealjs_style_theme = "slides.css"
revealjs_script_plugins = [{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}]
revealjs_script_conf = {
    "width": 1200, "height": 675, "margin": 0.0625, "center": False, "transition": "none",
    "hash": True, "navigationMode": "linear", "slideNumber": "c/t",
    "defaultTiming": 0,  # of the title; `deck` has those of the other slides
}  # fmt: skip
