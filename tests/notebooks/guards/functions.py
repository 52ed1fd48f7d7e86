"""What is shown is what runs: a function under the name of one in kdlib is that function."""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

from .page import Page, running, tags, tree

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def functions(page: Page) -> list[str]:
    """Functions and classes shown under a name of kdlib have its syntax tree."""
    package = kdlib_definitions(page.root)
    complaints = []
    for index, cell in page.code():
        here = {node.name: node for node in definitions(tree(cell))}
        promised = {
            tag.removeprefix("shown:") for tag in tags(cell) if tag.startswith("shown:")
        }
        for name in sorted(promised):
            if name not in package:
                complaints.append(
                    page.complain(index, f"expected {name} to be defined in kdlib; {_near(package, name)}")
                )
            elif name.rpartition(".")[2] not in here:
                complaints.append(page.complain(index, f"expected the cell to define {name}"))
        for name, node in here.items():
            exact = [full for full in promised if full in package and _last(full) == name]
            rivals = exact or [full for full in package if _last(full) == name]
            if rivals and not any(same(node, package[full]) for full in rivals):
                expected = f"expected {name} as it stands in {' or '.join(sorted(rivals))}"
                complaints.append(page.complain(index, f"{expected}, or another name"))
    return complaints


def kdlib_definitions(root: Path) -> dict[str, Definition]:
    """Dotted name to syntax tree of every function and class of kdlib, read without importing."""
    found = {}
    for path in sorted((root / "kdlib").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in definitions(ast.parse(path.read_text(encoding="utf-8"))):
            found[f"{module}.{node.name}"] = node
    return found


def definitions(module: ast.Module) -> Iterator[Definition]:
    """Functions and classes that a module or cell defines, not those within them."""
    for node in running(module.body):
        if isinstance(node, Definition):
            yield node


def same(one: Definition, other: Definition) -> bool:
    """Do two definitions agree, docstrings and annotations aside? Decorators count."""
    return _bare(one) == _bare(other)


def _bare(node: Definition) -> str:
    return ast.dump(_Bare().visit(copy.deepcopy(node)))


class _Bare(ast.NodeTransformer):
    """Removes what a notebook may leave out: docstrings, annotations, type parameters."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.Assign(targets=[node.target], value=node.value)

    def _body(self, node: Definition) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        if hasattr(node, "type_params"):
            node.type_params = []
        if isinstance(node, ast.ClassDef):
            # The fields of a dataclass are annotations; their names, order and defaults count.
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign) and statement.value is None:
                    statement.value = ast.Constant(value=...)
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _near(package: dict[str, Definition], name: str) -> str:
    near = sorted(full for full in package if _last(full) == _last(name))
    return f"there is {', '.join(near)}" if near else "no module defines that name"
