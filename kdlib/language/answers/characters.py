"""Characters that mean the same: full-width forms, dashes that are minus signs, blanks of every width."""

__all__ = ["plain"]

_SAME = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # ！ to ～: digits, letters
_SAME[ord("，")] = ";"  # a Chinese comma is never one of thousands
_SAME |= dict.fromkeys(map(ord, "−–—‐‑‒﹣"), "-")
_SAME |= dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u202f\u3000"), " ")
_SAME |= {ord("⁄"): "/", ord("∕"): "/", ord("﹪"): "%", ord("≒"): "≈", ord("￥"): "¥"}


def plain(text: str) -> str:
    """The text with one character for each of those that mean the same; as long as before.

    Not Unicode's NFKC, which makes "x2" of "x²".
    """
    return text.translate(_SAME)
