"""Settings of the site, as Sphinx reads them.

Its sources are the files of the repository, where they lie, so that every link that works there works here.
English and Chinese are two runs of Sphinx, the second with the tag `zh`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CHINESE = tags.has("zh")  # noqa: F821  (Sphinx puts `tags` here)

project = "知识蒸馏" if CHINESE else "Knowledge distillation"
html_title = project
language = "zh_CN" if CHINESE else "en"
root_doc = "README.zh" if CHINESE else "README"
include_patterns = (
    ["README.zh.md", "notebooks/zh/*.md", "notebooks/zh/*.ipynb", "notebooks/zh/solutions/*.ipynb"]
    if CHINESE
    else ["README.md", "COMPARISON.md", "CONTRIBUTING.md", "data/README.md", "data/results/README.md",
          "notebooks/*.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "kdlib/course/site/*.md"]
)  # fmt: skip
# Sphinx would walk through all of these in search of pages.
exclude_patterns = [
    entry.name for entry in ROOT.iterdir()
    if entry.is_dir() and entry.name not in ("data", "kdlib", "notebooks")
] + ["data/cache", "data/downloads", "notebooks/slides.md", "notebooks/zh/slides.md"]  # fmt: skip

extensions = [
    "myst_nb", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon",
    "kdlib.course.site.formulas", "kdlib.course.site.sources", "kdlib.course.site.glossary",
    "kdlib.course.site.results", "kdlib.course.site.languages", "kdlib.course.site.chinese",
]  # fmt: skip
nitpicky = True
suppress_warnings = [
    # The glossary and the solutions have headings of the third level below their title. In HTML they are of
    # the second: there the level is the depth.
    "myst.header",
]

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "上文论断的检验代码" if CHINESE else "The claim above, as a check that the tests run"
nb_code_prompt_hide = nb_code_prompt_show
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 6
myst_heading_slug_func = "kdlib.course.site.sources.anchor"
copybutton_selector = ".highlight pre:not(.cell_output pre)"

default_role = "code"
napoleon_use_rtype = False  # "The traces of these problems: …" names no type
autodoc_typehints = "none"
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
templates_path = ["templates"]
html_sidebars = {"**": [
    "sidebar/brand.html", "sidebar/search.html", "sidebar/language.html", "sidebar/scroll-start.html",
    "sidebar/navigation.html", "sidebar/scroll-end.html",
]}  # fmt: skip
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
