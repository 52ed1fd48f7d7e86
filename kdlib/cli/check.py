"""`python -m kdlib check`: is this machine ready for the course?"""

import argparse
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from kdlib.course.check import Finding, report, run_checks


def installed(name: str) -> str:
    """A package and its version, or that it is missing."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


def to_send(findings: Iterable[Finding]) -> str:
    """Three lines for whoever helps: versions, machine, and the checks by name; no folder and no user."""
    try:
        import psutil

        memory = f"{psutil.virtual_memory().total / 1e9:.0f} GB"
    except ImportError:
        memory = "memory unknown"
    verdicts: dict[bool, list[str]] = {}
    for finding in findings:
        verdicts.setdefault(finding.ok, []).append(finding.name)
    versions = [f"Python {platform.python_version()}", *map(installed, ("kdlib", "torch", "jupyterlab"))]
    machine = [platform.system(), platform.machine(), f"{os.cpu_count()} cores", memory]
    named = [f"{'ok' if ok else 'FIX'}: {' '.join(names)}" for ok, names in sorted(verdicts.items())]
    return "\n".join([", ".join(versions), ", ".join(machine), "; ".join(named)])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report and what to send; the exit status is 0 only if every line is ok."""
    description = "Is this machine ready for the course? Every line says ok, or FIX and how."
    argparse.ArgumentParser(prog="python -m kdlib check", description=description).parse_args(argv)
    findings = report(run_checks())
    print(f"\nTo send to whoever helps you:\n{to_send(findings)}")
    return 0 if all(finding.ok for finding in findings) else 1
