r"""HTML pages of executed notebooks, to read the course without Jupyter and without a network.

Formulas between `$…$` or `$$…$$` become MathML, which browsers draw by themselves. `\$` is a dollar sign.
What cannot be drawn is refused, never left as source.
"""

import base64
import html
import mimetypes
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jinja2 import DictLoader, pass_context
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from math_core import LatexError, LatexToMathML
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

# The lab template gives a picture no alt text of its own (https://github.com/jupyter/nbconvert/issues/1993);
# this block is the template's, with it. What a page asks of the network are the scripts of sliders, where it
# has one; offline it is whole but for them.
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
_INDEX = """<!DOCTYPE html>
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
_LATEX = LatexToMathML(fancy_error=False)


class FormulaError(ValueError):
    """A formula that cannot be drawn."""


def to_mathml(latex: str, *, display: bool = False) -> str:
    """The `<math>` element of a formula, with its LaTeX source as alternative text."""
    shown = " ".join(latex.split())
    if re.search(r"(?<!\\)(?:\\\\)*%", latex):
        raise FormulaError(rf"the formula {shown}: % hides the rest of its line; write \%")
    try:
        code = _LATEX.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        reason = re.sub(r"^\d+: ", "", str(error))  # the position, in bytes
        raise FormulaError(f"the formula {shown} cannot be drawn: {reason}") from error
    return code.replace("<math", f'<math alttext="{html.escape(shown)}"', 1)


def _refuse_lone_dollars(state: StateCore) -> None:
    for token in state.tokens:
        inner = [child for child in token.children or [] if child.type == "text"]
        for text in [*inner, *([token] if token.type == "html_block" else [])]:
            if "$" in text.content:
                near = text.content.strip().splitlines()[0][:60]
                raise FormulaError(rf"a lone $ or a formula inside HTML, near {near!r}; write \$ for dollars")


def _highlighted(code: str, language: str, attributes: str) -> str:
    if not language:
        return ""  # escaped, as it is
    spans = highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    return f'<pre class="highlight"><code>{spans}</code></pre>'


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"highlight": _highlighted}).enable(["table", "strikethrough"])
    draw = lambda latex, options: to_mathml(latex, display=options["display_mode"])  # noqa: E731
    parser.use(dollarmath_plugin, renderer=draw, double_inline=True, allow_labels=False)
    parser.use(anchors_plugin, max_level=6, slug_func=lambda title: title.replace(" ", "-"))
    parser.core.ruler.before("text_join", "lone_dollars", _refuse_lone_dollars)
    return parser


_MARKDOWN = _markdown()


def markdown_to_html(source: str) -> str:
    """CommonMark with tables, `$…$` drawn; `FormulaError` for a formula, or a dollar sign, that cannot be."""
    return _MARKDOWN.render(source)


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return markdown_to_html(source)


def check_formulas(notebook: NotebookNode) -> None:
    """Raise `FormulaError`, naming the cell, if a formula in the prose cannot be drawn."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            try:
                markdown_to_html(cell.source)
            except FormulaError as error:
                raise FormulaError(f"cell {index + 1} (id {cell.get('id')}): {error}") from error


def render(notebook: NotebookNode, title: str, source: Path, target: Path, course: Path) -> str:
    """One HTML page with its images inside and links to the other pages, nothing hidden.

    Args:
        source: where the notebook is, somewhere below the folder `course`.
        target: where the page is to be.

    Raises:
        FormulaError: a formula cannot be drawn.
    """
    exporter = _Exporter(
        template_name="lab",
        extra_loaders=[DictLoader({"course.html.j2": _TEMPLATE})],
        template_file="course.html.j2",
    )
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})

    def moved(match: re.Match[str]) -> str:
        parts = urlsplit(html.unescape(match["address"]))
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return match[0]
        file = Path(os.path.normpath(source.parent / unquote(parts.path)))
        if file.suffix == ".ipynb" and file.is_relative_to(course):
            path = parts.path.removesuffix(".ipynb") + ".html"
        elif not file.exists():
            return match[0]
        elif match["name"] == "src":
            kind = mimetypes.guess_type(file)[0]
            path = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
            return f'{match["before"]}"{path}"'
        else:  # another file of the course: the page lies elsewhere than its notebook
            path = Path(os.path.relpath(file, target.parent)).as_posix().replace(" ", "%20")
        return f'{match["before"]}"{html.escape(parts._replace(path=path).geturl())}"'

    link = r"""(?P<before><(?:a|img)\b[^>]*?\s(?P<name>href|src)=)(["'])(?P<address>.*?)\3"""
    return re.sub(link, moved, page, flags=re.DOTALL)


def index_page(pages: Iterable[tuple[str, str, float]]) -> str:
    """A list of pages, each given by name, title and measured minutes."""
    rows = "\n".join(
        f'<li><a href="{html.escape(name)}.html">{html.escape(title)}</a> ({minutes:.2f} min)</li>'
        for name, title, minutes in pages
    )
    return _INDEX.format(rows=rows)
