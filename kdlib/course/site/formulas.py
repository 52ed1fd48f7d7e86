"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

import html
import re

from docutils.nodes import SkipNode, math, math_block
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_LATEX = LatexToMathML(fancy_error=False)
_LOG = logging.getLogger(__name__)


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


def _draw(page: HTML5Translator, node: math | math_block) -> None:
    display = isinstance(node, math_block)
    try:
        drawn = to_mathml(node.astext(), display=display)
    except ValueError as error:
        _LOG.warning("%s", error, location=node)
    else:
        page.body.append(f'<div class="formula">{drawn}</div>' if display else drawn)
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer "mathml" to Sphinx."""
    app.add_html_math_renderer("mathml", (_draw, None), (_draw, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
