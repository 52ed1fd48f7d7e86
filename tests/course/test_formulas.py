"""Formulas in Markdown become MathML, or are refused by name."""

import html
import re
import xml.etree.ElementTree as ET

import pytest
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from kdlib.course.build.formulas import FormulaError, to_mathml, with_formulas


def page(source: str) -> ET.Element:
    """The HTML of a Markdown text, read as XML, so that what is not closed is an error."""
    text = with_formulas(source, MarkdownWithMath(renderer=IPythonRenderer(escape=False)).render)
    return ET.fromstring(f"<page>{text}</page>")


def drawn(source: str) -> list[str]:
    """The LaTeX of the formulas drawn; no mark or stand-in may be left beside them."""
    root = page(source)
    texts = "".join(root.itertext())
    assert not re.search("[\ufdd0-\ufdef]", texts)
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
    assert shape(ET.fromstring(to_mathml(latex))) == expected


def test_rows_are_aligned_without_numbers():
    (math,) = page("\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}")[0]
    assert math.get("display") == "block"
    assert [len(row.findall("mtd/mi")) for row in math.iter("mtr")] == [2, 2]
    assert "(1)" not in "".join(math.itertext())


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
        ("so $$L\n- b$$ is\n$a\n+ b$", ["L - b", "a + b"]),  # no list, no setext heading
        (r"\\(a\\) and \\[b\\]", ["a", "b"]),
        ("$a_i + b_i$ and _$c_j$_ and **$d*e*f$** and *at $T$*", ["a_i + b_i", "c_j", "d*e*f", "T"]),
        (r"$\text{in {braces} too}$", [r"\text{in {braces} too}"]),
        (r"$\{a\}$ and $x \\ y$", [r"\{a\}", r"x \\ y"]),
        (r"$5\$ + a$", [r"5\$ + a"]),
        ("$p<q$ and $r>s$", ["p<q", "r>s"]),
        ("## Why $T^2$?", ["T^2"]),
        ("- $a$\n  1. $$b\n     c$$\n\n> $$d\n> + e$$", ["a", "b c", "d + e"]),
        ("[at $T$](x.html) and ![loss at $T$](x.png)", ["T"]),  # an alt text cannot hold a formula
        ("[a](https://example.org/?a=$b$) $c$", ["c"]),
        ("<details><summary>Hint $a$</summary>\n\nUse $b_1$ and $b_2$.\n\n$$c$$\n\n</details>",
         ["a", "b_1", "b_2", "c"]),
        ("<details>\n<p>$a$</p></details>", ["a"]),
        ("<span title='$a$ and \"$b$'>$c$</span>", ["c"]),
        ("91.2<!-- $out$ --> $a$", ["a"]),
        ("<span title='$5'>$c$</span><!-- $ -->", ["c"]),
        ("```\n$x\n```\n$a$ and\n~~~\n$x ` $\n~~~\n$b$ `c`", ["a", "b"]),
    ],
)  # fmt: skip
def test_formulas_in_markdown(source, formulas):
    assert drawn(source) == formulas


@pytest.mark.parametrize("edge", ["|", ""])
def test_bars_in_a_table_cell_belong_to_the_formula(edge):
    cells = [r"$\mathrm{KL}(p \| q)$", "$|a|$", r"$P(y|x)$ \| text"]
    rows = ["a | b | c", "---|---|---", " | ".join(cells)]
    table = page("\n".join(f"{edge} {row} {edge}" for row in rows)).find("table/tbody")
    assert [[math.get("alttext") for math in cell.iter("math")] for cell in table.iter("td")] == [
        [r"\mathrm{KL}(p \| q)"], ["|a|"], ["P(y|x)"]
    ]  # fmt: skip
    assert "‖" in "".join(table.find("tr/td").itertext())  # two bars, not the one of Markdown's \|


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
        ("<pre>\n$a$\n\n$b\n</pre>", "\n$a$\n\n$b\n"),
        ("<code>$a$</code>", "$a$"),
    ],
)
def test_code_keeps_its_dollars(source, text):
    root = page(source)
    assert not list(root.iter("math"))
    codes = [e for e in root.iter() if e.tag in ("code", "pre") and not e.findall("code")]
    assert " and ".join("".join(code.itertext()) for code in codes) == text


def test_dollars_of_code_open_no_formula():
    assert drawn("`$a` is $b$, not `c$`") == ["b"]


def test_escaped_dollars_are_dollars():
    root = page(r"from \$5 to \$6, $a$, \$7")
    assert "".join(root.itertext()).strip() == "from $5 to $6, a, $7"


def test_escaped_dollars_in_html_are_dollars():
    assert page(r"<p>\$5 and $a$</p>")[0].text == "$5 and "


def test_address_of_a_link_keeps_its_dollars():
    (link,) = page("[a](https://example.org/?a=$b$&c=$)").iter("a")
    assert link.get("href") == "https://example.org/?a=$b$&c=$"


def test_text_beside_formulas_is_as_without():
    source = "# A\n\n*x* and [y](z.html) @@0@@ &amp; 5 % <b>bold</b>\n\n| a | b |\n|--|--|\n| 1 | 2 |"
    render = MarkdownWithMath(renderer=IPythonRenderer(escape=False)).render
    assert with_formulas(source, render) == render(source)


@pytest.mark.parametrize(
    "latex",
    [r"\foo x", r"\frac{1}", r"\left( x", "x^", "x_a_b", r"\begin{cases} a", r"\begin{foo} a \end{foo}",
     r"\text{a \foo}", "a & b", r"\text{a $b$ c}", "50% of x"],
)  # fmt: skip
def test_formula_that_cannot_be_drawn_is_named(latex):
    for source in (f"so ${latex}$ is", f"$$\n{latex}\n$$", f"| a |\n|---|\n| ${latex}$ |",
                   f"<details><summary>a</summary>\n\n${latex}$\n\n</details>"):  # fmt: skip
        with pytest.raises(FormulaError, match=re.escape(latex)):
            drawn(source)
    assert not list(page(f"`${latex}$`").iter("math"))


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("where $T is", r"a lone \$ in"),
        ("costs 5$", r"a lone \$ in"),
        ("$a\n\nb$", r"a lone \$ in"),
        ("$\\frac{1$ and more", r"a lone \$ in"),
        ("$$a$", r"a lone \$\$ in"),
        ("$$a\n\nb$$", r"a lone \$\$ in"),
        (r"\\(a", "a lone"),
        (r"\begin{align} a", r"\\begin\{align\} has no end"),
        ("$ $", "is empty"),
        ("a $$$$ b", "is empty"),
    ],
)
def test_formula_without_end_or_content_is_refused(source, what):
    with pytest.raises(FormulaError, match=what):
        drawn(source)


def test_plain_text_as_of_a_latex_output():
    text = with_formulas(r"$\displaystyle a < b$ & c", html.escape)
    assert text.startswith('<math alttext="\\displaystyle a &lt; b">') and text.endswith("</math> &amp; c")
