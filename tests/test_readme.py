"""What the README says is so: its examples run, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def example_of_the_readme(number, folder, last_line):
    """Run the README's n-th Python example in a folder, without warnings; what it prints."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[number]
    script = f"import warnings; warnings.simplefilter('error')\n{example}\n{last_line}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readmes_loss_runs_as_it_stands(tmp_path):
    assert example_of_the_readme(0, tmp_path, "print(loss.item() > 0)") == "True\n"


def test_the_readmes_training_runs_as_it_stands_on_a_folder_of_pictures(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "my_photographs" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    printed = example_of_the_readme(1, tmp_path, "print(teacher is not student)")
    assert re.fullmatch(r"accuracy .*%, NLL .* nats, ECE .*%\nTrue\n", printed)
    assert {"teacher.safetensors", "student.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_the_readmes_fused_loss_runs_as_it_stands(tmp_path):
    check = """
from kdlib import kd_loss
logits, gradient = student_hidden @ student_weight.T, student_weight.grad.clone()
student_weight.grad = None
expected = kd_loss(logits, teacher_hidden @ teacher_weight.T, labels, temperature=1.0, alpha=0.5)
expected.backward()
torch.testing.assert_close(loss, expected)
torch.testing.assert_close(gradient, student_weight.grad)"""
    assert example_of_the_readme(3, tmp_path, check) == ""


def test_every_make_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|^PYTHON=\S+ )make ([a-z]+)", text, re.MULTILINE))
    assert {"lab", "test", "course", "check"} <= named
    assert named <= set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())


def test_readme_without_make_says_what_the_makefile_does():
    """Windows users type these; they must not drift from the recipes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\", "/")
    lines = re.findall(r"^\.venv/Scripts/(.*)$", text, re.MULTILINE)
    recipes = re.findall(r"\$\(BIN\)/(.*)$", MAKEFILE, re.MULTILINE)
    for line in lines:
        if " -m pip " not in line:  # make installs with uv, which pip stands in for here
            assert any(line == re.sub(r" \$\((PYTEST|LAB)_ARGS\)", "", recipe) for recipe in recipes), line
    assert len(lines) == 5
    assert any("--require-hashes -r requirements.lock" in line for line in lines)
