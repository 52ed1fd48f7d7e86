"""One fingerprint of a notebook together with every module of kdlib that it runs."""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file, of every module in the package folder `root`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> set[tuple[str, str]]:
    """(module, name taken from it) of each import, lazy ones too; "" where the module itself is imported."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def strings(tree: ast.AST) -> set[str]:
    """All string constants. Among them are the modules that lazy tables hand to `import_module`."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def notebook_fingerprint(notebook: Mapping, root: Path) -> str:
    """One number for the code of a notebook and of every module of kdlib that it runs.

    Comments, docstrings and layout do not count, so that an edit of prose changes nothing. Committed results,
    files of `data/results` below `root` whose name stands in the code, do count.
    """
    files = modules(root / "kdlib")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    codes = {"": _read("\n".join(cells))}
    waiting = _needed(codes[""], files)
    while waiting:
        name = waiting.pop()
        codes[name] = _read(files[name].read_text(encoding="utf-8"))
        waiting |= _needed(codes[name], files) - codes.keys()
    results = {path.name: path for path in (root / "data" / "results").glob("*.json")}
    data = sorted(set.union(*(code.strings for code in codes.values())) & results.keys())
    content = [
        {name: code.plain for name, code in sorted(codes.items())},
        {name: results[name].read_text(encoding="utf-8") for name in data},
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Code(NamedTuple):
    strings: set[str]
    imported: set[tuple[str, str]]
    plain: object


@cache  # notebooks share most modules
def _read(source: str) -> _Code:
    tree = ast.parse(source)
    return _Code(strings(tree), imported(tree), _plain(tree))


def _needed(code: _Code, files: Mapping[str, Path]) -> set[str]:
    """The modules that hold what is imported; a name that a package passes on counts as its own module."""
    found = {name for name in code.strings & files.keys() if "." in name}
    for module, name in code.imported:
        if f"{module}.{name}" in files:
            found.add(f"{module}.{name}")
        elif module in files:
            passed_on = _passed_on(files[module])
            found |= passed_on[name] & files.keys() if name in passed_on else {module}
    return found


@cache
def _passed_on(package: Path) -> dict[str, set[str]]:
    """Names that a package's `__init__.py` imports, and from where; nothing for a plain module."""
    found: dict[str, set[str]] = {}
    if package.name == "__init__.py":
        for module, name in imported(ast.parse(package.read_text(encoding="utf-8"))):
            found.setdefault(name, set()).add(module)
    return found


def _plain(node: object) -> object:
    """A syntax tree as lists, the same in every version of Python, without docstrings."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
        ast.get_docstring(node, clean=False) is not None
    ):
        fields["body"] = node.body[1:]
    # Versions differ in which fields they leave out when empty.
    kept = {name: value for name, value in fields.items() if value not in (None, [])}
    return [type(node).__name__, {name: _plain(value) for name, value in kept.items()}]
