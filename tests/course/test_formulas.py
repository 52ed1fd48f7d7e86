"""Formulas become MathML, or are refused by name."""

import re
import xml.etree.ElementTree as ET

import pytest

from kdlib.course.site.formulas import to_mathml


def shape(element: ET.Element) -> str:
    """``mfrac(mn 1, mi T)``: names and texts, without attributes and spaces."""
    children = [shape(child) for child in element if child.tag != "mspace"]
    return f"{element.tag}({', '.join(children)})" if children else f"{element.tag} {element.text}"


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\frac{1}{T}", "math(mfrac(mn 1, mi T))"),
        ("T^2", "math(msup(mi T, mn 2))"),
        ("p_i < 1", "math(msub(mi p, mi i), mo <, mn 1)"),
        (r"\mathrm{KL}(p\,\|\,q)", "math(mrow(mi KL), mo (, mi p, mo ‖, mi q, mo ))"),
        (r"p(y \mid x)", "math(mi p, mo (, mi y, mo ∣, mi x, mo ))"),
        (r"\log q", "math(mrow(mrow(mi log), mo \u2061, mi q))"),  # the sign for "applied to", no entity
        (r"5\,\%", "math(mn 5, mi %)"),
    ],
)
def test_structure(latex, expected):
    # HTML knows more names of characters than an XML parser does.
    assert shape(ET.fromstring(to_mathml(latex).replace("&ApplyFunction;", "\u2061"))) == expected


def test_source_is_the_alternative_text():
    latex = '\\begin{matrix} a < b \\text{ "or" } \\\\\n  c & d \\end{matrix}'
    text = to_mathml(latex, display=True)
    assert ET.fromstring(text).get("alttext") == latex.replace("\n  ", " ")


@pytest.mark.parametrize(
    "latex",
    [r"\foo x", r"\frac{1}", r"\left( x", "x^", "x_a_b", r"\begin{cases} a", r"\begin{foo} a \end{foo}",
     r"\text{a \foo}", "a & b", "50% of x"],
)  # fmt: skip
def test_formula_that_cannot_be_drawn_is_named(latex):
    with pytest.raises(ValueError, match=re.escape(latex)):
        to_mathml(latex)
