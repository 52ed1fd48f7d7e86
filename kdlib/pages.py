"""HTML pages of executed notebooks, to read the course without Jupyter."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import NotebookNode

# The lab template drops the alt text of an image; this block is the template's, with it.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
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


def render(notebook: NotebookNode, title: str, source: Path, target: Path, course: Path) -> str:
    """One HTML page with its images inside and links to the other pages, nothing hidden.

    The notebook lies at ``source`` below the folder ``course``; the page is to lie at ``target``.
    Formulas and sliders are drawn by scripts that the page loads from the network. Without a
    network a formula shows as its LaTeX source, and a slider does not show.
    """
    exporter = HTMLExporter(
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
