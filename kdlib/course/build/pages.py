r"""HTML pages of executed notebooks, to read the course without Jupyter and without a network.

They are nbconvert's, but formulas between `$…$` or `$$…$$` become MathML, which browsers draw by themselves.
"""

import html
import re

from jinja2 import pass_context
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

# No scripts from the network, but for the sliders of a page that has some. Pictures keep their alt text
# (https://github.com/jupyter/nbconvert/issues/1993), and cells that Jupyter folds are folded here too.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_mathjax %}
<style>
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
details.claim > summary { color: #616161; cursor: pointer; font-size: 90%; }
</style>
{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_requirejs %}{% if 'widgets' in nb.metadata %}{{ super() }}{% endif %}{% endblock %}
{% block input %}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}
<details class="claim"><summary>The claim above, as a check that the tests run</summary>
{{ super() }}
</details>
{%- else -%}{{ super() }}{%- endif -%}
{% endblock %}
{% block data_png scoped %}
{%- set about = output.metadata.get('image/png', {}) -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
{%- for name in about %} {{ name }}="{{ about[name] | string | escape_html }}"{% endfor %}>
</div>
{% endblock %}
"""
_LATEX = LatexToMathML(fancy_error=False)


def to_mathml(latex: str, *, display: bool = False) -> str:
    """The `<math>` element of a formula, its LaTeX as alternative text; `ValueError` if it has none."""
    shown = " ".join(latex.split())
    if re.search(r"(?<!\\)(?:\\\\)*%", latex):
        raise ValueError(rf"the formula {shown}: % hides the rest of its line; write \%")
    try:
        code = _LATEX.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        raise ValueError(f"the formula {shown} cannot be drawn: {error}") from error
    return code.replace("<math", f'<math alttext="{html.escape(shown)}"', 1)


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def block_math(self, body: str) -> str:
        return to_mathml(body, display=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if "://" not in url and re.search(r"\.ipynb(#|$)", url):
            url = url.replace(".ipynb", ".html", 1)
        elif url.startswith("../"):  # build/course lies one folder deeper than notebooks
            url = "../" + url
        elif re.fullmatch(r"[\w-]+\.md", url):  # stays where it is
            url = "../../notebooks/" + url
        return super().link(text, url, title)


def markdown_to_html(source: str) -> str:
    """Markdown with its formulas drawn and its links leading to the other pages."""
    return MarkdownWithMath(_Renderer(escape=False)).render(source)


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return markdown_to_html(source)


def check_formulas(notebook: NotebookNode, name: str) -> None:
    """Raise `ValueError`, naming the cell, if a formula in the prose cannot be drawn."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            try:
                markdown_to_html(cell.source)
            except ValueError as error:
                where = f"notebooks/{name}.ipynb, cell {index + 1} (id {cell.id})"
                raise ValueError(f"{where}: {error}") from error


def render(notebook: NotebookNode, title: str) -> str:
    """The page of a notebook."""
    exporter = _Exporter(template_name="lab", raw_template=_TEMPLATE)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return page


def index_page(titles: dict[str, str], minutes: dict[str, float]) -> str:
    """A list of links with the title of each page and its measured minutes."""
    rows = "\n".join(
        f'<li><a href="{name}.html">{html.escape(title)}</a> ({minutes[name]:.2f} min)</li>'
        for name, title in titles.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Knowledge distillation</title>\n'
        f"<h1>Knowledge distillation</h1>\n<ul>\n{rows}\n</ul>\n</html>\n"
    )
