"""A package that a bare installation leaves out is asked for by the name of its extra."""

from importlib.util import find_spec


def require(extra: str, *packages: str) -> None:
    """Raise `ModuleNotFoundError`, which says how to install `extra`, if one of `packages` is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f'kdlib[{extra}] needs {package}: python -m pip install "kdlib[{extra}]" '
                f'(in a checkout of the course: ".[{extra}]")',
                name=package,
            )
