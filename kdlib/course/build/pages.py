"""HTML pages of executed notebooks, to read the course without Jupyter."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jinja2 import DictLoader, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from kdlib.course.build.formulas import FormulaError, with_formulas

# The lab template drops the alt text of an image; this block is the template's, with it. Formulas
# are MathML, so no script draws them. What a page still asks of the network are the scripts of
# sliders, in pages that have one; offline the page is whole without them but for the sliders.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_mathjax %}
<style>
/* Brackets grow with what they hold only in a font made for formulas: whichever is there. */
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
math[display="block"] { margin: 1em 0; overflow-x: auto; overflow-y: hidden; }
</style>
{% endblock html_head_js_mathjax %}
{% block html_head_js_requirejs %}
{%- if 'widgets' in nb.metadata %}{{ super() }}{% endif -%}
{% endblock html_head_js_requirejs %}
{% block html_head_js_mermaidjs %}{% endblock html_head_js_mermaidjs %}
{% block data_latex scoped %}
<div class="jp-RenderedLatex jp-OutputArea-output {{ extra_class }}" data-mime-type="text/latex">
{{ output.data['text/latex'] | latex2html }}
</div>
{% endblock data_latex %}
{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
{%- for name in ('alt', 'width', 'height') -%}
{%- set value = output | get_metadata(name, 'image/png') -%}
{%- if value is not none %} {{ name }}="{{ value | string | escape_html }}"{% endif -%}
{%- endfor -%}
>
</div>
{% endblock data_png %}
"""

_IMAGE = re.compile(r"""<img\b(?:[^>"']|"[^"]*"|'[^']*')*>""", re.IGNORECASE)


class _Renderer(IPythonRenderer):
    """Embeds the pictures of HTML one by one.

    nbconvert's reads each piece of HTML as if it were whole. A ``<details>`` around Markdown comes
    in two pieces, so it was closed at once, and the hint stood open below it.
    """

    def block_html(self, html: str) -> str:
        return self.inline_html(html) + "\n"

    def inline_html(self, html: str) -> str:
        return _IMAGE.sub(lambda image: super(_Renderer, self).inline_html(image[0]), html)


class _Exporter(HTMLExporter):
    """Draws formulas in Markdown cells, Markdown outputs and LaTeX outputs."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        cell = context.get("cell", {})
        renderer = _Renderer(
            escape=False,
            attachments=cell.get("attachments", {}),
            embed_images=self.embed_images,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
        )
        return with_formulas(source, MarkdownWithMath(renderer=renderer).render)

    def default_filters(self):
        yield from super().default_filters()
        yield "latex2html", lambda source: with_formulas(source, html.escape)


def check_formulas(notebook: NotebookNode) -> None:
    """Raise :class:`FormulaError`, naming the cell, if a formula in the prose cannot be drawn."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            try:
                renderer = _Renderer(escape=False, attachments=cell.get("attachments", {}))
                with_formulas(cell.source, MarkdownWithMath(renderer=renderer).render)
            except FormulaError as error:
                raise FormulaError(f"cell {index + 1} (id {cell.get('id')}): {error}") from error


def render(notebook: NotebookNode, title: str, source: Path, target: Path, course: Path) -> str:
    """One HTML page with its images inside and links to the other pages, nothing hidden.

    The notebook lies at ``source`` below the folder ``course``; the page is to lie at ``target``.
    Formulas are drawn as MathML, without a script; :class:`FormulaError` if one cannot be. Only
    sliders need scripts from the network, and do not show without it.
    """
    exporter = _Exporter(
        template_name="lab",
        extra_loaders=[DictLoader({"course.html.j2": _TEMPLATE})],
        template_file="course.html.j2",
        embed_images=True,
    )
    resources = {"metadata": {"name": title, "path": str(source.parent)}}
    page, _ = exporter.from_notebook_node(notebook, resources=resources)

    def moved(match: re.Match[str]) -> str:
        before, quote, written = match[1], match[2], html.unescape(match[3])
        parts = urlsplit(written)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return match[0]
        place = Path(os.path.normpath(source.parent / unquote(parts.path)))
        if place.suffix == ".ipynb" and place.is_relative_to(course):
            path = parts.path.removesuffix(".ipynb") + ".html"
        elif place.exists():
            # Another file of the course: the page lies elsewhere than its notebook.
            path = Path(os.path.relpath(place, target.parent)).as_posix().replace(" ", "%20")
        else:
            return match[0]
        link = html.escape(parts._replace(path=path).geturl())
        return f"{before}{quote}{link}{quote}"

    return re.sub(r"""(<a\b[^>]*?\shref=)(["'])(.*?)\2""", moved, page, flags=re.DOTALL)


def index_page(pages: Iterable[tuple[str, str, float]]) -> str:
    """A list of pages, each given by name, title and measured minutes."""
    rows = "\n".join(
        f'<li><a href="{html.escape(name)}.html">{html.escape(title)}</a> ({minutes:.2f} min)</li>'
        for name, title, minutes in pages
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Knowledge distillation</title>
<style>body {{ font: 1.1rem/1.6 sans-serif; max-width: 40rem; margin: 2rem auto; }}</style>
</head>
<body>
<h1>Knowledge distillation</h1>
<ul>
{rows}
</ul>
</body>
</html>
"""
