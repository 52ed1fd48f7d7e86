"""One way to write characters and LaTeX that mean the same, so that answers can be compared."""

import re

__all__ = ["TEXT_COMMAND", "NUMERAL", "plain", "without_latex", "words"]

NUMERAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"

_SAME = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # ！ to ～: digits, letters
_SAME[ord("，")] = ";"  # a Chinese comma is never one of thousands
_SAME |= dict.fromkeys(map(ord, "−–—‐‑‒﹣"), "-")
_SAME |= dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u202f\u3000"), " ")
_SAME |= {ord("⁄"): "/", ord("∕"): "/", ord("﹪"): "%", ord("≒"): "≈", ord("￥"): "¥"}

TEXT_COMMAND = re.compile(r"\\(?:text[a-z]{0,3}|math(?:rm|bf|it|sf)|mbox|operatorname)\s*+\{([^{}]*+)\}")
_LATEX = [
    (re.compile(pattern), plain_text)
    for pattern, plain_text in (
        (r"(?<=\d)(?:\\[,!]|\{,\})(?=\d{3})", ","),
        (r"\\left\b|\\right\b|\\!", ""),
        (TEXT_COMMAND, r" \1 "),
        (TEXT_COMMAND, r" \1 "),  # one in another
        (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\s*°", " degrees "),
        (r"\\([%$])", r"\1"),
        (r"\\[,;: ]|~|\\q?quad\b", " "),
        (r"\\[dt]?frac\s*+([0-9])\s*+([0-9])", r" \1/\2 "),
        (r"\\[dt]?frac\s*+\{\s*+([-+]?[0-9.,]++)\s*+\}\s*+\{\s*+([0-9.,]++)\s*+\}", r" \1/\2 "),
    )
]


def plain(text: str) -> str:
    """The text with full-width forms, dashes and blanks as ASCII has them; as long as before.

    Not Unicode's NFKC, which makes "x2" of "x²".
    """
    return text.translate(_SAME)


def without_latex(answer: str) -> str:
    """Plain characters instead of LaTeX's, as far as words and numbers use them."""
    answer = plain(answer)
    for pattern, plain_text in _LATEX:
        answer = pattern.sub(plain_text, answer)
    return " ".join(answer.split())


def words(answer: str) -> str:
    """The words of an answer in lower case; of a choice "(C)" the letter."""
    answer = " ".join(without_latex(answer).replace("*", " ").split()).lower()
    return answer[1:-1] if re.fullmatch(r"\([a-z]\)", answer) else answer
