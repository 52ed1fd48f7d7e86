"""The public face of kdlib: what DESIGN fixed, loaded when it is asked for."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import kdlib

SOURCE = Path(kdlib.__file__).read_text(encoding="utf-8")


def test_every_public_name_is_there():
    for name in kdlib.__all__:
        home = importlib.import_module(kdlib._HOME_OF[name])
        assert getattr(kdlib, name) is vars(home)[name]
        assert name in getattr(home, "__all__", vars(home))


def test_the_names_for_type_checkers_are_those_loaded_at_run_time():
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    declared = {alias.name: line.module for line in block.body for alias in line.names}
    assert declared == kdlib._HOME_OF
    assert sorted(declared) == sorted(kdlib.__all__)


def test_a_star_import_brings_the_public_names_and_no_others():
    found = {}
    exec("from kdlib import *", found)
    assert set(found) - {"__builtins__"} == set(kdlib.__all__)
    assert set(kdlib.__all__) <= set(dir(kdlib))


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'kdlib' has no attribute 'distill_everything'"):
        kdlib.distill_everything  # noqa: B018


def test_importing_kdlib_does_not_import_torch():
    code = "import sys, kdlib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_loss_and_the_loop_does_not_import_the_compiler():
    code = "import sys; from kdlib import fit, kd_loss; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
