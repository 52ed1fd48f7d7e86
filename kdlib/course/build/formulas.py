r"""LaTeX formulas in Markdown as MathML, which browsers draw by themselves.

Formulas are found as JupyterLab finds them: ``$…$``, ``$$…$$``, ``\\(…\\)``, ``\\[…\\]`` and
``\begin{…}…\end{…}``, with balanced braces and no empty line inside, before Markdown sees the text.
So a ``|``, ``_`` or ``*`` in a formula is no table, no emphasis. Dollar signs in code stay, and
``\$`` is a dollar sign. What cannot be drawn is refused, never left as source.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from urllib.parse import quote

from math_core import LatexError, LatexToMathML

# Stand-ins while Markdown is at work. Unicode keeps these code points free for internal use.
_DOLLAR, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_PLACE = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")

# A block between fences, or a span between as many backticks; together, so that a backtick in a
# block opens no span.
_CODE = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}|~{3,})[^\n`]*\n.*?(?:^[ \t>]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<![\\`])(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).)+?(?<!`)(?P=ticks)(?!`)",
    re.M | re.S,
)
# A tag with its attributes in quotes; 'p <q and r> s' in formulas is none.
_TAG = re.compile(
    r"<!--.*?-->|</?[a-zA-Z][\w-]*(?:\s+[\w:-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>", re.S
)

_MARK = re.compile(
    r"\\\\[()\[\]]|\\[\\{}$]|\$\$?|\\(?:begin|end)\{[a-zA-Z]*\*?\}|[{}]|\n(?:[ \t>]*\n)+"
)
_CLOSER = {"$": "$", "$$": "$$", r"\\(": r"\\)", r"\\[": r"\\]"}

# In the page: where text is not prose, so that a browser would not have drawn a formula either.
_NO_PROSE = re.compile(
    r"<(pre|code|script|style|textarea)\b.*?</\1\s*>|<!--.*?-->"
    r"|</?[a-zA-Z](?:[^<>\"']|\"[^\"]*\"|'[^']*')*>",
    re.S | re.I,
)
# As in JupyterLab, equations have no numbers.
_NUMBERED = re.compile(r"\\(begin|end)\{(align|alignat|eqnarray|equation|flalign|gather|multline)\}")
_CONVERTER = LatexToMathML(fancy_error=False)


class FormulaError(ValueError):
    """A formula that cannot be drawn."""


def to_mathml(latex: str, *, display: bool = False) -> str:
    """The ``<math>`` element of a formula, with its LaTeX source as alternative text."""
    shown = latex.strip()
    if not shown:
        raise FormulaError("a formula is empty")
    if re.search(r"(?<!\\)(?:\\\\)*%", latex):
        raise FormulaError(rf"the formula {shown}: % hides the rest of its line; write \%")
    try:
        code = _CONVERTER.convert_with_local_state(_NUMBERED.sub(r"\\\1{\2*}", latex), displaystyle=display)
    except LatexError as error:
        reason = re.sub(r"^\d+: ", "", str(error))  # the position, in bytes
        raise FormulaError(f"the formula {shown} cannot be drawn: {reason}") from error
    # HTML knows more names of characters than an XML parser does.
    code = re.sub(r"&(?!(?:lt|gt|amp|quot);)\w+;", lambda name: html.unescape(name[0]), code)
    return code.replace("<math", f'<math alttext="{html.escape(" ".join(shown.split()))}"', 1)


def with_formulas(text: str, render: Callable[[str], str]) -> str:
    """The HTML that ``render`` makes of a text, its formulas drawn.

    Raises :class:`FormulaError` for a formula that cannot be drawn, and for a mark that opens a
    formula without end, such as a lone ``$`` in prose.
    """
    hidden, formulas = _take_out(text)
    page = render(hidden)
    for mark in (_DOLLAR, _OPEN, _CLOSE):  # in the address of a link, and in a heading
        page = page.replace(quote(mark), mark).replace(f"&#{ord(mark)};", mark)
    pieces, end = [], 0
    for found in _NO_PROSE.finditer(page):
        pieces.append(_PLACE.sub(lambda place: _drawn(formulas[int(place[1])]), page[end : found.start()]))
        pieces.append(_PLACE.sub(lambda place: html.escape(formulas[int(place[1])]), found[0]))
        end = found.end()
    pieces.append(_PLACE.sub(lambda place: _drawn(formulas[int(place[1])]), page[end:]))
    return "".join(pieces).replace(_DOLLAR, "$")


def _take_out(text: str) -> tuple[str, list[str]]:
    """The text with a numbered stand-in for each formula, and the formulas with their marks."""
    for pattern in (_CODE, _TAG):
        text = pattern.sub(lambda found: found[0].replace("$", _DOLLAR), text)
    pieces: list[str] = []
    formulas: list[str] = []
    position = 0
    while opening := _MARK.search(text, position):
        mark = opening[0]
        pieces.append(text[position : opening.start()])
        position = opening.end()
        if mark == r"\$":
            pieces.append(_DOLLAR)
        elif mark in _CLOSER or mark.startswith(r"\begin"):
            closer = _CLOSER.get(mark) or mark.replace("begin", "end")
            position = _end_of(text, position, closer) or position
            pieces.append(f"{_OPEN}{len(formulas)}{_CLOSE}")
            formulas.append(_unquoted(text, opening.start(), position))
        else:
            pieces.append(mark)
    return "".join([*pieces, text[position:]]), formulas


def _end_of(text: str, start: int, closer: str) -> int | None:
    """Where the formula ends; None if braces do not close or an empty line comes first."""
    depth = 0
    for found in _MARK.finditer(text, start):
        mark = found[0]
        if mark == closer and depth <= 0:
            return found.end()
        if mark.startswith("\n"):
            return None
        depth += (mark == "{") - (mark == "}")
    return None


def _unquoted(text: str, start: int, end: int) -> str:
    """The formula, without the ``>`` of a quotation in front of its further lines."""
    line = text[text.rfind("\n", 0, start) + 1 : start]
    formula = text[start:end]
    return re.sub(r"\n[ \t]*>[ \t]?", "\n", formula) if line.lstrip().startswith(">") else formula


def _drawn(formula: str) -> str:
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\\(", r"\\)"), (r"\\[", r"\\]")):
        if formula == opening:
            raise FormulaError(rf"a lone {opening} in the text; a dollar sign is written \$")
        if formula.startswith(opening):
            latex = formula.removeprefix(opening).removesuffix(closing)
            return to_mathml(latex, display=opening in ("$$", r"\\["))
    if not formula.rstrip().endswith("}") or r"\end" not in formula:
        raise FormulaError(f"{formula} has no end")
    return to_mathml(formula, display=True)
