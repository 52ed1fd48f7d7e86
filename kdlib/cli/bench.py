"""`python -m kdlib bench`: the door to tests/benchmarks, which only a checkout has."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; their own parser reads the arguments."""
    if not (TESTS / "benchmarks" / "__main__.py").is_file():
        raise FileNotFoundError("the benchmarks are not installed with the package: run this in a checkout")
    sys.path.insert(0, str(TESTS))
    importlib.import_module("benchmarks.arguments").parser().parse_args(argv)  # before what is slow
    return importlib.import_module("benchmarks.__main__").main(argv)
