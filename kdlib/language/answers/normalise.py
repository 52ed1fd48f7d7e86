"""One way to write characters and LaTeX that mean the same, so that answers can be read and compared."""

import re
import unicodedata

__all__ = ["NUMERAL", "canonical", "plain", "same_text"]

NUMERAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"

_SAME = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # ！ to ～: digits, letters
_SAME[ord("，")] = ";"  # a Chinese comma is never one of thousands
_SAME |= dict.fromkeys(map(ord, "−–—‐‑‒﹣"), "-")
_SAME |= dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u202f\u3000"), " ")
_SAME |= {ord("⁄"): "/", ord("∕"): "/", ord("﹪"): "%", ord("≒"): "≈", ord("￥"): "¥"}


def plain(text: str) -> str:
    """The text with full-width forms, dashes and blanks as ASCII has them; as long as before.

    Not Unicode's NFKC, which makes "x2" of "x²".
    """
    return text.translate(_SAME)


# Unicode's mathematics, and what LaTeX writes for it.
_SIGNS = (
    r"×\times ·\cdot ⋅\cdot ∙\cdot ÷\div ≤\leq ⩽\leq ≦\leq ≥\geq ⩾\geq ≧\geq ≠\neq ≈\approx ±\pm ∓\mp "
    r"∞\infty "
    r"∅\emptyset ∈\in ∉\notin ∪\cup ∩\cap ∖\setminus ⊂\subset ⊆\subseteq ⊃\supset ⊇\supseteq →\rightarrow "
    r"⇒\Rightarrow ⇔\Leftrightarrow ≡\equiv ≅\cong ∼\sim ∝\propto ∣\mid ∀\forall ∃\exists ¬\neg ∧\land ∨\lor "
    r"∠\angle △\triangle ∑\sum ∏\prod ∫\int ∂\partial ∇\nabla ⊥\perp ∥\parallel ⟨\langle ⟩\rangle ⌊\lfloor "
    r"⌋\rfloor ⌈\lceil ⌉\rceil …\ldots ⋯\ldots °\degree º\degree ℝ\mathbb{R} ℤ\mathbb{Z} ℕ\mathbb{N} "
    r"ℚ\mathbb{Q} "
    r"ℂ\mathbb{C} ϕ\varphi ℃\degree{}C ℉\degree{}F ′'"
)
_CHARACTERS = {sign[0]: f" {sign[1:]} " for sign in _SIGNS.split()}
for _code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA), 0xB5, 0x2126):
    _name = unicodedata.name(chr(_code), "").replace("LAMDA", "LAMBDA").split()  # GREEK CAPITAL LETTER OMEGA
    if _name and _name[-2] in ("LETTER", "MICRO", "OHM"):
        _letter = {"MICRO SIGN": "MU", "OHM SIGN": "OMEGA"}.get(" ".join(_name), _name[-1]).lower()
        _capital = "CAPITAL" in _name or "OHM" in _name
        _CHARACTERS[chr(_code)] = f" \\{_letter.title() if _capital else _letter} "
for _sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
    _CHARACTERS[_sign] = r" \frac{{{}}}{{{}}} ".format(*unicodedata.normalize("NFKC", _sign).split("⁄"))
for _code in range(0x1D400, 0x1D800):  # 𝑥, 𝟏
    _CHARACTERS[chr(_code)] = unicodedata.normalize("NFKC", chr(_code))
_CHARACTERS |= {"、": ";", "\ufe0f": "", "\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": ""}
_TABLE = str.maketrans(_CHARACTERS)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₐₓₖᵢ"
_LEVEL = str.maketrans(_RAISED + _LOWERED, "0123456789+-=()ni0123456789+-=()naxki")

_GROUP = r"(\{[^{}]*+\}|\([^()]*+\)|[0-9.]++|\\?[A-Za-z]++)"
_ARGUMENT = r"(\{[^{}]*+\}|\\[A-Za-z]++|[0-9A-Za-z])"
_TEXT = (
    r"\\(?:text[a-z]{0,6}|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|bm|boldsymbol|operatorname|ce|boxed|fbox)"
)
_FUNCTIONS = r"arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp"


def _inner(group: str) -> str:
    return group[1:-1] if group[0] in "{(" else group


# In this order. None has nested repetition, so that each takes time linear in the text.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"[{_RAISED}]++", lambda found: f"^{{{found[0].translate(_LEVEL)}}}"),
        (rf"[{_LOWERED}]++", lambda found: f"_{{{found[0].translate(_LEVEL)}}}"),
        (r"[0-9]\u0305(?:[0-9]\u0305)*+", lambda found: rf"\overline{{{found[0][::2]}}}"),
        (r"(?<=\d)(?:\\[,;:! ]|\\!\\,|\{,\}|,\\!|~)(?=\d{3}(?!\d))", ","),
        (
            r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|large|Large|small|color\{[a-z]+\}|textcolor\{[a-z]+\}|limits|nolimits|phantom\{\}|!)(?![A-Za-z])|\\!",
            " ",
        ),
        (r"(?<!\\)\\[,;:> \n]|~|\\(?:q?quad|enspace|thinspace|hfill|newline)(?![A-Za-z])|\\\\?\Z", " "),
        (rf"{_TEXT}\s*+\{{((?:[^{{}}]|\{{[^{{}}]*+\}})*+)\}}", r" \1 "),
        (rf"{_TEXT}\s*+\{{((?:[^{{}}]|\{{[^{{}}]*+\}})*+)\}}", r" \1 "),  # one in another
        (r"\{\s*\\(?:rm|bf|it|text)\s([^{}]*+)\}", r" \1 "),
        (
            r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\(?:degree|textdegree)(?![a-zA-Z])(?:\{\})?",
            r"\\degree ",
        ),
        (r"\\([%$€£#&])", r"\1"),
        (r"\\(?:le|leqslant|leqq)(?![a-zA-Z])|<=|=<", r" \\leq "),
        (r"\\(?:ge|geqslant|geqq)(?![a-zA-Z])|>=", r" \\geq "),
        (r"\\(?:ne|not\s*+=)(?![a-zA-Z=])|!=", r" \\neq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\to(?![a-zA-Z])|->", r" \\rightarrow "),
        (r"\\implies(?![a-zA-Z])|=>", r" \\Rightarrow "),
        (r"\\(?:varnothing|O|empty)(?![a-zA-Z])|\\\{\s*+\\\}", r" \\emptyset "),
        (r"\\(?:lbrace|rbrace)(?![a-zA-Z])", lambda found: r"\{" if "lb" in found[0] else r"\}"),
        (r"\\[lr]?vert(?![a-zA-Z])", "|"),
        (r"\\(?:dots|cdots|dotsc)(?![a-zA-Z])|\.\.\.+", r" \\ldots "),
        (r"\\(?:backslash)(?![a-zA-Z])", r"\\setminus "),
        (r"\\(?:prime)(?![a-zA-Z])|\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"\\mathbb\s*+([A-Z])", r"\\mathbb{\1}"),
        (r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1"),
        (
            rf"\\frac\s*+{_ARGUMENT}\s*+{_ARGUMENT}",
            lambda found: rf"\frac{{{_inner(found[1])}}}{{{_inner(found[2])}}}",
        ),
        (r"(?<=\d)_(?=\d{3}(?!\d))", ","),
        (r"_\s*([0-9A-Za-z])", r"_{\1}"),
        (r"\\dot\s?\{?([0-9])\}?(?:([0-9]*)\\dot\s?\{?([0-9])\}?)?(?![a-z])", r"\\overline{\1\2\3}"),
        (r"(?<=\d) and (?=[0-9]++/[0-9])|(?<=\d)\s?又(?=\d)", " "),
        (r"(?<=\d) and (?:a|one) (half|quarter|third)\b", lambda found: _PARTS[found[1]]),
        (r"\A\s*(?:minus|negative)\s+(?=[0-9$\\])", "-"),
        (r"\A\s*([A-Za-z]{3,9}|a dozen)\b(?!-)", lambda found: _SPOKEN.get(found[1].lower(), found[0])),
        (r"\A\s*([一二两三四五六七八九十])(?=[个只人元条]|\Z)", lambda found: _SPOKEN[found[1]]),
        (r"负(?=\d)", "-"),
        (
            r"(?<![\w.,-])(\d[\d.,]*+(?:\s*+\\degree)?(?:\s*+[A-Za-z]++(?<!below)){0,2}+)\s++below zero\b",
            r"-\1",
        ),
        (r"百分之(\d++(?:\.\d++)?)", r"\1%"),
        (r"\*\*", "^"),
        (
            rf"(?:√|\\sqrt(?=\s*+[(0-9A-Za-z\\])|(?<![\\A-Za-z])sqrt)\s*+{_GROUP}",
            lambda found: rf"\sqrt{{{_inner(found[1])}}}",
        ),
        (rf"∛\s*+{_GROUP}", lambda found: rf"\sqrt[3]{{{_inner(found[1])}}}"),
        (r"\^\s*+\(([^()]*+)\)", r"^{\1}"),
        (
            r"(?<![\\A-Za-z])(pi|infinity|theta|alpha|beta|gamma|lambda)(?![A-Za-z])",
            lambda found: _GREEK[found[1]],
        ),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=[\s(_^\\0-9])(?!\s+[a-z]{{2}})", r"\\\1 "),
    )
]
_PARTS = {"half": " 1/2", "quarter": " 1/4", "third": " 1/3"}
_SPOKEN = {
    name: str(value)
    for names in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty",
        "零 一 二 三 四 五 六 七 八 九 十",
    )
    for value, name in enumerate(names.split(" "))
} | {"两": "2", "a dozen": "12"}
_GREEK = {name: rf"\{name} " for name in ("pi", "theta", "alpha", "beta", "gamma", "lambda")} | {
    "infinity": r"\infty "
}


def canonical(text: str) -> str:
    """An answer as LaTeX writes it, without marks of layout; text in formulas becomes words.

    Full-width forms are those of ASCII, signs and letters of mathematics their commands, fractions and roots
    have braces, relations one name each.
    """
    text = plain(text).translate(_TABLE)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


# Words of two letters that stay the same in capitals; others may be symbols: Co and CO, XI and xi.
_FOLDED = {"no", "so", "up", "on", "in", "am", "pm", "he", "we", "it", "or", "if", "is", "to", "of", "at"}


def same_text(one: str, other: str) -> bool:
    """Whether two canonical texts are written alike, apart from blanks, braces, and case in words."""
    return _key(one) == _key(other)


def _key(text: str) -> str:
    text = re.sub(r"[{](\\?[A-Za-z]+|[0-9]|[0-9]{2,})[}]", r"\1 ", text).rstrip(".。;, ")
    text = re.sub(r"(?<=[A-Za-z]{2})!+\Z", "", text)
    text = re.sub(r"\(([A-Ja-j])\)", r"\1", text) if len(text) == 3 else text
    text = re.sub(r"(?<![\\A-Za-z])[A-Za-z]+(?![A-Za-z])", _folded, text)
    text = text.lower() if re.fullmatch("[a-eA-E]", text) else text
    # A blank counts between two letters and between two digits: 2 1/2 is not 21/2.
    return re.sub(r"(?<![A-Za-z0-9])\s+|(?<!\d)\s+(?![A-Za-z])|(?<=\d)\s+(?!\d)", "", text)


def _folded(found: re.Match) -> str:
    word = found[0]
    alike = word.islower() or word.isupper() or word.istitle()  # but MHz and mHz
    return word.lower() if alike and (len(word) > 2 or word.lower() in _FOLDED) else word
