"""The rules of the house: which way imports run, what is private, how long a file is, what things are called.

Each rule is a function from a package folder to complaints; the second half breaks each rule once in a small
package and sees it complain.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdlib.course.build.sources import imported, modules, strings

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES = 400, 80
ROOMS_FOR_PEOPLE = ("course", "cli")  # only these import from these
STRANGERS = ("vision", "language")  # these do not know each other
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}
OLD_WORDS = re.compile(
    r"kdlib[./](?:reasoning|bench|configs|splits|fused|shards|records|history|canvas|charts|galleries|plots|"
    r"widgets|check|exercises|cleaning|formulas|pages|fetch|kernels|operators|closed_form|top_k)\b(?![/.]*<)"
    r"|kdlib[./]vision[./](?:arms|experiment|results)\b"
)


def imports(source: str, names: set[str]) -> set[str]:
    """Modules among `names` that a text imports, anywhere in it; a string that is exactly such a name counts.

    Importing `a.b.c` counts as `a.b.c` alone: packages here re-export, if anything, what lies inside them.
    """
    tree = ast.parse(source)
    found = strings(tree)
    for module, name in imported(tree):
        found.add(f"{module}.{name}" if f"{module}.{name}" in names else module)
    return found & names


def import_graph(package: Path) -> dict[str, set[str]]:
    """Module to the modules that it imports, lazily or not. The package's own face is left out."""
    found = modules(package)
    names = set(found) - {package.name}
    # __main__ and the face load everything and are loaded by nobody.
    return {name: imports(found[name].read_text(encoding="utf-8"), names) - {name} for name in names}


def room(module: str) -> str:
    """`kdlib.vision.nets` is in the room `vision`."""
    return (module.split(".") + [""])[1]


def arrows(package: Path) -> Iterator[str]:
    for module, targets in import_graph(package).items():
        if module.endswith(".__main__"):
            continue
        for target in sorted(targets):
            if room(target) in ROOMS_FOR_PEOPLE and room(module) not in ROOMS_FOR_PEOPLE:
                yield f"{module} imports {target}: only {' and '.join(ROOMS_FOR_PEOPLE)} may"
            if {room(module), room(target)} == set(STRANGERS):
                yield f"{module} imports {target}: {' and '.join(STRANGERS)} do not know each other"


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle of the graph, or None. Depth first."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for after in sorted(graph.get(node, ())):
            if found := visit(after, [*path, node]):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node, []))), None)


def circles(package: Path) -> Iterator[str]:
    """No circle of modules; and inside each folder none of its entries, files and folders, either."""
    graph = import_graph(package)
    if found := circle(graph):
        yield "circle of modules: " + " -> ".join(found)
    folders = {name.rsplit(".", up)[0] for name in graph for up in range(1, name.count(".") + 1)}
    for folder in sorted(folders):
        depth = folder.count(".") + 1
        entries: dict[str, set[str]] = {}
        inside = {name for name in graph if name.startswith(folder + ".") and not name.endswith(".__main__")}
        for name in inside:
            entry = name.split(".")[depth]
            targets = {target.split(".")[depth] for target in graph[name] & inside}
            entries.setdefault(entry, set()).update(targets - {entry})
        if found := circle(entries):
            yield f"circle of what is in {folder}: " + " -> ".join(found)


def private_names(source: str, names: set[str], own: str = "") -> Iterator[str]:
    """Names with a leading underscore that `source` takes from modules of the package."""
    tree = ast.parse(source)
    known = {}
    package = min(names, key=len).split(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__") and node.module != own:
                    yield f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in names:
                    known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner in known:
                yield f"{known[owner]}.{node.attr}"


def crossing(package: Path) -> Iterator[str]:
    found = modules(package)
    for name, path in found.items():
        for private in private_names(path.read_text(encoding="utf-8"), set(found), name):
            yield f"{name} uses {private}, which is private"


def sizes(package: Path) -> Iterator[str]:
    for name, path in modules(package).items():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > FILE_LINES:
            yield f"{name} has {lines} lines, more than {FILE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                kernel = any("jit" in ast.unparse(mark) for mark in node.decorator_list)
                length = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:  # what explains a function does not make it long
                    length -= node.body[0].end_lineno - node.body[0].lineno + 1
                if length > FUNCTION_LINES and not kernel:
                    yield f"{name}.{node.name} has {length} lines, more than {FUNCTION_LINES}"


def vague(package: Path) -> Iterator[str]:
    for name in modules(package):
        if set(name.split(".")) & VAGUE:
            yield f"{name}: a name that says nothing"


RULES = {rule.__name__: rule for rule in (arrows, circles, crossing, sizes, vague)}


def documents(root: Path) -> list[Path]:
    return [*root.glob("*.md"), *root.glob("data/**/README.md"), *sorted(root.glob("notebooks/**/*.ipynb"))]


def old_words(path: Path) -> list[str]:
    """Modules of the layout before this one that a text still names."""
    return sorted({match[0] for match in OLD_WORDS.finditer(path.read_text(encoding="utf-8"))})


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule):
    complaints = list(RULES[rule](ROOT / "kdlib"))
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize("path", documents(ROOT), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_speaks_of_the_old_layout(path):
    assert not old_words(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/**/*.ipynb")), ids=lambda path: path.name)
def test_notebooks_use_public_names(path):
    assert not list(private_names(code_of(path), set(modules(ROOT / "kdlib"))))


@pytest.fixture
def house(tmp_path):
    """Writes a small package, from file name to text."""

    def build(**files: str) -> Path:
        package = tmp_path / "kdlib"
        for name, text in files.items():
            path = package / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return package

    return build


BROKEN = {
    "arrows": [
        (
            {"training": "import kdlib.course.plots", "course__plots": ""},
            "training imports kdlib.course.plots",
        ),
        (
            {"data": "def f():\n    from kdlib.cli import fetch", "cli__fetch": ""},
            "data imports kdlib.cli.fetch",
        ),
        ({"vision__nets": "from kdlib.language import a", "language__a": ""}, "do not know each other"),
    ],
    "circles": [
        (
            {"a": "import kdlib.b", "b": "def f():\n    from kdlib.a import g"},
            "kdlib.a -> kdlib.b -> kdlib.a",
        ),
        ({"a": "load('kdlib.b')", "b": "import kdlib.a"}, "kdlib.a -> kdlib.b -> kdlib.a"),
        (
            {"x__a": "import kdlib.y.a", "x__b": "", "y__a": "", "y__b": "import kdlib.x.b"},
            "kdlib: x -> y -> x",
        ),
    ],
    "crossing": [
        ({"a": "from kdlib.b import _c", "b": "_c = 1"}, "kdlib.a uses kdlib.b._c"),
        ({"a": "from kdlib import b\nb._c", "b": "_c = 1"}, "kdlib.a uses kdlib.b._c"),
        ({"a": "import kdlib.b as q\nq._c", "b": "_c = 1"}, "kdlib.a uses kdlib.b._c"),
    ],
    "sizes": [
        ({"a": "x = 1\n" * 401}, "kdlib.a has 401 lines"),
        ({"a": "class C:\n def f(self):\n" + "  x = 1\n" * 80}, "kdlib.a.f has 81 lines"),
    ],
    "vague": [({"language__utils": ""}, "kdlib.language.utils")],
}


@pytest.mark.parametrize(
    ("rule", "files", "complaint"),
    [(rule, files, complaint) for rule, cases in BROKEN.items() for files, complaint in cases],
)
def test_a_broken_rule_is_noticed(house, rule, files, complaint):
    assert any(complaint in found for found in RULES[rule](house(**files)))


def test_a_kernel_may_be_long(house):
    package = house(kernels="@triton.jit\ndef f():\n" + "    x = 1\n" * 90)
    assert not list(sizes(package))


@pytest.mark.parametrize(
    "word", ["kdlib.reasoning.answers", "`kdlib/bench/race.py`", "kdlib.plots", "kdlib.vision.arms"]
)
def test_an_old_word_is_noticed(tmp_path, word):
    page = tmp_path / "README.md"
    page.write_text(f"See {word}, and kdlib.losses.kernels and kdlib.course.plots.")
    assert len(old_words(page)) == 1
