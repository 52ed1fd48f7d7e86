"""One character for each of those that mean the same."""

__all__ = ["NUMERAL", "plain"]

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
