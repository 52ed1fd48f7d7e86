"""What the studies of a real language model share: the model, English to score it on, and finished runs."""

import ast
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.course.studies.records import once
from kdlib.language.distill.batches import TokenExample
from kdlib.language.documents import encode_documents
from kdlib.language.models.load import load_checkpoint
from kdlib.runtime import describe_environment
from kdlib.storage import fingerprint


def python_texts(shortest: int = 400) -> list[str]:
    """English that comes with Python: the topics of `help()`, and docstrings of the standard library.

    They differ a little from version to version. Licence: Python's (PSF-2.0).
    """
    from pydoc_data.topics import topics

    found = list(topics.values())
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "pydoc_data"} & {*path.relative_to(library).parts}:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [
            ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)
        ]
    return list(dict.fromkeys(text for text in found if len(text) >= shortest))


@dataclass(frozen=True)
class LanguageStudy:
    """A study of one model, resumable from its folder of caches and finished runs."""

    folder: Path
    checkpoint: str  # the model's folder, or its name for `load_checkpoint`
    recipe: Any  # sizes of the study: a dataclass with `context` and `precision`
    texts: Sequence[str] = ()  # default `python_texts()`
    progress: bool = False

    @cached_property
    def loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_checkpoint(self.checkpoint, dtype="float32")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded[1]

    def start(self) -> PreTrainedModel:
        """A copy of the model as it is."""
        return deepcopy(self.loaded[0])

    def cast(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model itself, its weights now in the study's precision."""
        return model if self.recipe.precision == "no" else model.to(torch.bfloat16)

    def pieces(self, texts: list[str], count: int) -> list[TokenExample]:
        """At least `count` pieces, of whole texts, which are taken off the end of the list."""
        found: list[TokenExample] = []
        while len(found) < count:
            found += encode_documents(self.tokenizer, [texts.pop()], context=self.recipe.context)
        return found

    def once(self, key: list, run: Callable[[], Mapping]) -> dict:
        """What `run` returns, or returned when it was finished before."""
        return once(self.folder / "runs.jsonl", key, run)

    def described(self, seeds: Sequence[int]) -> dict[str, object]:
        """What results begin with: where, of which model, by which recipe."""
        return {
            "environment": describe_environment(),
            "model": {"checkpoint": Path(self.checkpoint).name, "fingerprint": fingerprint(self.loaded[0])},
            "recipe": asdict(self.recipe), "seeds": len(seeds),
        }  # fmt: skip
