"""Formulas in Markdown become MathML, or are refused by name."""

import re
import xml.etree.ElementTree as ET

import pytest

from kdlib.course.build.pages import markdown_to_html, to_mathml


def page(source: str) -> ET.Element:
    """The HTML of a Markdown text, read as XML, so that what is not closed is an error."""
    return ET.fromstring(f"<page>{markdown_to_html(source)}</page>")


def drawn(source: str) -> list[str]:
    """The LaTeX of the formulas drawn; no mark may be left beside them."""
    root = page(source)
    assert "$" not in "".join(root.itertext())
    return [element.get("alttext") for element in root.iter("math")]


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
    ("source", "formulas"),
    [
        ("at $T = 1$, $T$", ["T = 1", "T"]),
        ("$$L = a$$", ["L = a"]),
        ("so\n\n$$\nL = a\n  + b\n$$\n\nend", ["L = a + b"]),
        ("$a_i + b_i$ and _$c_j$_ and **$d*e*f$** and *at $T$*", ["a_i + b_i", "c_j", "d*e*f", "T"]),
        (r"$\text{in {braces} too}$", [r"\text{in {braces} too}"]),
        (r"$\{a\}$ and $x \\ y$", [r"\{a\}", r"x \\ y"]),
        ("$p<q$ and $r>s$", ["p<q", "r>s"]),
        ("## Why $T^2$?", ["T^2"]),
        ("- $a$\n  1. $$b\n     c$$\n\n> $$d\n> + e$$", ["a", "b c", "d + e"]),
        ("[at $T$](x.html) and ![loss at $T$](x.png)", ["T"]),  # an alt text cannot hold a formula
        ("<details><summary>Hint</summary>\n\n$a$. Use $b_1$ and $b_2$.\n\n$$c$$\n\n</details>",
         ["a", "b_1", "b_2", "c"]),
        ("<span title='$a$ and \"$b$'>$c$</span>", ["c"]),
        ("91.2<!-- $out$ --> $a$", ["a"]),
    ],
)  # fmt: skip
def test_formulas_in_markdown(source, formulas):
    assert drawn(source) == formulas


def test_formulas_in_a_table():
    table = page("| a | b |\n|---|---|\n| $p_i \\Vert q$ | $a$ |").find("table/tbody")
    assert [[math.get("alttext") for math in cell.iter("math")] for cell in table.iter("td")] == [
        [r"p_i \Vert q"], ["a"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("`$a$`", "$a$"),
        ("`` `$a` `` and `$b`", "`$a` and $b"),
        ("```python\nx = '$a$'\n```", "x = '$a$'\n"),
        ("~~~\n$$a\n\n$$\n~~~", "$$a\n\n$$\n"),
        ("- x\n\n  ```\n  $a\n  ```", "$a\n"),
        ("    echo $HOME < $PATH", "echo $HOME < $PATH"),
        ("    echo $HOME", "echo $HOME"),
        (r"`\$a\$`", r"\$a\$"),
    ],
)
def test_code_keeps_its_dollars(source, text):
    root = page(source)
    assert not list(root.iter("math"))
    codes = [e for e in root.iter() if e.tag in ("code", "pre") and not e.findall("code")]
    assert " and ".join("".join(code.itertext()).strip("\n") for code in codes) == text.strip("\n")


def test_dollars_of_code_open_no_formula():
    root = page("`$a` is $b$, not `c$`")
    assert [math.get("alttext") for math in root.iter("math")] == ["b"]
    assert "".join(root.itertext()).strip() == "$a is b, not c$"


def test_escaped_dollars_are_dollars():
    root = page(r"from \$5 to \$6, $a$, \$7")
    assert "".join(root.itertext()).strip() == "from $5 to $6, a, $7"


@pytest.mark.parametrize(
    "latex",
    [r"\foo x", r"\frac{1}", r"\left( x", "x^", "x_a_b", r"\begin{cases} a", r"\begin{foo} a \end{foo}",
     r"\text{a \foo}", "a & b", "50% of x"],
)  # fmt: skip
def test_formula_that_cannot_be_drawn_is_named(latex):
    for source in (f"so ${latex}$ is", f"$$\n{latex}\n$$", f"| a |\n|---|\n| ${latex}$ |",
                   f"<details><summary>a</summary>\n\n${latex}$\n\n</details>"):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(latex)):
            drawn(source)
    assert not list(page(f"`${latex}$`").iter("math"))
