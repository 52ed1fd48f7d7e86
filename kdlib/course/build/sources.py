"""Which modules of kdlib a source imports, and one fingerprint of a notebook with all that it runs."""

import ast
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file, of every module in the package folder `root`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, names: set[str]) -> set[str]:
    """Modules among `names` that the Python text `source` imports, anywhere in it.

    A string that is exactly a module's name counts, since lazy tables hand such strings to `import_module`.
    Importing `a.b.c` counts as `a.b.c` alone: packages here re-export, if anything, what lies inside them.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in names else node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found & names
