"""The kernels compiled for A100, H100 and H200, and B200, as a launch has them: what a GPU is told to do.

`benchmarks.compiled` launches them with a driver that stands in for CUDA's, so that divisibility, constants,
warps and options are what a user's call gets, and reads the machine code. Every setting meets every other
shape, and every target both; data/results/kernels_compiled.json has them all.
"""

import functools
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import compiled
from benchmarks.compiled import CAPABILITIES, SETTINGS, SHAPES, Counted, count, count_scaling

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which is there for Linux alone"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is told to interpret"),
]
COMMITTED = Path(__file__).resolve().parents[2] / "data" / "results" / "kernels_compiled.json"
REGISTERS = 80  # of a thread: at 256 threads three programs share a multiprocessor's 65,536
# Instructions of a class as counted; they may become 10 % more. In float32, half as many classes to a block.
USUAL = {
    "forward, α 0": 51, "reverse, α 0": 54, "jsd, α 0": 96, "forward, α 0.5": 63, "reverse, α 0.5": 66,
    "jsd, α 0.5": 106, "hard term alone": 22.5,
}  # fmt: skip
CASES = [
    (setting, shape, CAPABILITIES[(row + column) % 3])
    for row, shape in enumerate(SHAPES) for column, setting in enumerate(SETTINGS) if (row + column) % 2
]  # fmt: skip


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """(setting, shape, capability) to what was counted, compiled when it is first asked for."""
    cache = tmp_path_factory.mktemp("triton")
    return functools.cache(lambda setting, shape, target: count(setting, SHAPES[shape], target, cache))


@functools.cache
def committed() -> dict:
    return json.loads(COMMITTED.read_text(encoding="utf-8"))


def stored(setting: str, shape: str, capability: int) -> dict:
    key = {"setting": setting, "shape": shape, "capability": capability}
    (row,) = [row for row in committed()["kernels"] if key.items() <= row.items()]
    return row


@pytest.mark.parametrize(("setting", "shape", "capability"), CASES)
def test_nothing_slow_is_in_a_kernel(setting, shape, capability, counted):
    found = counted(setting, shape, capability)
    complaints = complaints_about(found, setting, shape)
    assert not complaints, f"{found}: {complaints}"


def complaints_about(found: Counted, setting: str, shape: str) -> list[str]:
    kind = SHAPES[shape]
    soft = SETTINGS[setting][1] < 1
    sides = [dtype.itemsize for dtype in (kind.sides if soft else kind.sides[:1])]
    # 16 bytes of the wider side, and as many numbers of the other; of odd rows one number after the other.
    at_once = 16 // max(sides) if kind.aligned else 1
    reads, writes = {at_once * side for side in sides}, {at_once * kind.dtype.itemsize}
    passes, ceiling = 3 if "jsd" in setting else 2, 1.1 * USUAL[setting]
    wrong = {
        f"{found.spills} spills, {found.local} bytes of local memory": found.spills or found.local,
        f"{found.registers} registers, more than {REGISTERS}": found.registers > REGISTERS,
        f"{found.exchanges} exchanges between lanes in each block": found.exchanges,
        f"reads of {found.reads} bytes, expected {sorted(reads)}": set(found.reads) != reads,
        f"writes of {found.writes} bytes, expected {sorted(writes)}": set(found.writes) != writes,
        f"{found.strays} bytes read between the last barrier and the writes": found.strays,
        f"{found.per_class:.1f} instructions a class, more than {ceiling:.1f}": found.per_class > ceiling,
        f"{found.passes} passes, expected {passes}": found.passes != passes,
        f"{found.traffic} bytes a class": found.traffic != passes * sum(sides) + kind.dtype.itemsize,
    }
    return [text for text, is_wrong in wrong.items() if is_wrong]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_scaling_in_place_reads_and_writes_vectors(capability, tmp_path):
    found = count_scaling(151_936, torch.bfloat16, capability, tmp_path)
    assert (found.spills, found.local, found.exchanges, found.passes) == (0, 0, 0, 1)
    assert found.reads == found.writes == (16,) and found.traffic == 4 and found.registers <= REGISTERS


def test_what_is_committed_is_what_is_compiled(counted):
    """The same Triton makes the same of it; 10 % is for changes that somebody has not counted anew."""
    import triton

    if triton.__version__ != committed()["triton"]:
        pytest.skip(f"counted with Triton {committed()['triton']}, and this is {triton.__version__}")
    for case in CASES:
        found, row = counted(*case), stored(*case)
        assert row["per_class"] == pytest.approx(found.per_class, rel=0.1), case
        assert row["registers"] == pytest.approx(found.registers, rel=0.1), case
        assert (row["spills"], row["traffic"]) == (found.spills, found.traffic), case


def test_all_that_is_committed_is_without_fault():
    rows = committed()["kernels"]
    assert len(rows) == len(SETTINGS) * len(SHAPES) * len(CAPABILITIES)
    for setting in SETTINGS:
        for shape in SHAPES:
            for capability in CAPABILITIES:
                row = stored(setting, shape, capability)
                found = Counted(**{name: row[name] for name in Counted.__dataclass_fields__})
                assert not complaints_about(found, setting, shape), row


def test_bounds_follow_from_the_counts():
    """On an H100 the memory; on an H200 the JSD has as much to issue as to move, with a hard term more."""
    for setting in SETTINGS:
        row = stored(setting, "151,936", 90)
        classes = committed()["rows_of_bounds"] * 151_936
        h100, h200 = (row["bounds_ms"][name] for name in ("H100-80GB", "H200-141GB"))
        assert h200["memory"] == pytest.approx(1e3 * classes * row["traffic"] / 4.8e12, rel=0.01)
        assert h100["issue"] == h200["issue"] == pytest.approx(
            1e3 * classes * row["per_class"] / (132 * 128 * 1.98e9), rel=0.01
        )
        assert max(h100, key=h100.get) == "memory"
    jsd, with_labels = (
        stored(f"jsd, α {alpha}", "151,936", 90)["bounds_ms"]["H200-141GB"] for alpha in ("0", "0.5")
    )
    assert jsd["issue"] == pytest.approx(jsd["memory"], rel=0.1)
    assert max(with_labels, key=with_labels.get) == "issue"


def test_a_driver_that_stands_in_is_gone_afterwards(tmp_path):
    from triton.runtime import driver

    before = driver._active
    with compiled.stand_in(90, tmp_path):
        assert driver.active.get_current_target().arch == 90
    assert driver._active is before
