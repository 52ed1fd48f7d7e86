"""What a step of training costs with a teacher, from a cache or live; and batches from memory or workers."""

import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.race import Row, arms_in_turn
from kdlib.cache.images import cache_teacher
from kdlib.data import Examples, as_float
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.runtime import seeded
from kdlib.training import fit
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet

__all__ = ["language_steps", "loading", "random_texts", "vision_steps", "word_level_tokenizer"]

PLAIN, CACHED, LIVE = "no teacher", "cached teacher", "teacher at every step"


def vision_steps(
    device: torch.device, *, rounds: int, examples: int = 512, batch_size: int = 128, epochs: int = 2
) -> list[Row]:
    """Seconds of a step of `fit` on random pictures of 32 × 32, the arms in turn: 3 rows."""
    with seeded(0, device):
        teacher = convnet([32, 64, 128], depth=2)
    data = Loader(pictures(examples), Augmentation())
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": 1e-3, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        cached = cache_teacher(teacher, data, folder, epochs=epochs, seed=0, device=device)

        def trained(source) -> None:
            with seeded(1, device):
                student = convnet([12, 24, 48])
            fit(student, data, teacher=source, device=device, **settings)

        arms = {PLAIN: None, CACHED: cached, LIVE: teacher}
        return arms_in_turn(
            "training", "pictures", {name: partial(trained, source) for name, source in arms.items()}, device,
            rounds=rounds, steps=epochs * -(-examples // batch_size), examples=epochs * examples,
        )  # fmt: skip


def language_steps(
    device: torch.device, *, rounds: int, steps: int = 4, batch_size: int = 4, context: int = 256,
    vocabulary: int = 8192, width: int = 256, layers: int = 4, top_k: int = 64,
) -> list[Row]:  # fmt: skip
    """Seconds of a step of `distill_language_model` on random texts, the arms in turn: 3 rows.

    The cache holds the teacher's `top_k` largest logits; the live teacher is compared in all of them. The
    teacher is twice as wide and has twice as many layers.
    """
    tokenizer = word_level_tokenizer(vocabulary)
    student = _random_model(vocabulary, width, layers, 0, device)
    teacher = _random_model(vocabulary, 2 * width, 2 * layers, 1, device)
    examples = random_texts(batch_size * steps, context, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        cached = cache_teacher_tokens(teacher, tokenizer, examples, folder, top_k=top_k, device=device)
        arms = {PLAIN: None, CACHED: cached, LIVE: teacher}

        def trained(source) -> None:
            distill_language_model(
                student, tokenizer, examples, teacher=source, steps=steps, batch_size=batch_size, lr=1e-6,
                device=device,
            )  # fmt: skip

        rows = arms_in_turn(
            "training", "texts", {name: partial(trained, source) for name, source in arms.items()}, device,
            rounds=rounds, steps=steps, examples=batch_size * steps,
        )  # fmt: skip
        del cached, arms
        gc.collect()  # a cache that is still mapped cannot be deleted everywhere
    return rows


def loading(
    device: torch.device, *, rounds: int, examples: int = 8192, batch_size: int = 512, size: int = 32,
    workers: int | None = None,
) -> list[Row]:  # fmt: skip
    """Images a second of one epoch, shifted and mirrored at random, floating on the device: 2 rows.

    Args:
        workers: of torch's DataLoader, which stay between epochs; default as many as processors, at most 8.
    """
    data = pictures(examples, size)
    augmentation = Augmentation()
    ours = Loader(data, augmentation).to(device)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    theirs = DataLoader(
        _Transformed(data, augmentation.crop, size), batch_size, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
    )  # fmt: skip
    epochs = iter(range(10**9))

    def by_ours() -> None:
        epoch = next(epochs)
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(epoch))
        _consume(batch.images for batch in ours.batches(order.split(batch_size), epoch=epoch))

    def by_theirs() -> None:
        _consume(images.to(device, non_blocking=True) for images, _ in theirs)

    arms = {f"DataLoader, {workers} workers": by_theirs, "kdlib Loader": by_ours}
    return arms_in_turn("loader", "pictures", arms, device, rounds=rounds, examples=examples)


def _consume(batches: Iterator[torch.Tensor]) -> None:
    for images in batches:
        assert images.is_floating_point()


class _Transformed(Dataset):
    """Pictures one by one, as most people augment them."""

    def __init__(self, data: Examples, crop: int, size: int) -> None:
        self._data = data
        self._transform = v2.Compose(
            [v2.RandomCrop(size, padding=crop, padding_mode="reflect"), v2.RandomHorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return as_float(self._transform(self._data.images[row])), self._data.labels[row]


def pictures(count: int, size: int = 32) -> Examples:
    """Random pictures of two classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.arange(count) % 2, torch.arange(count))


def word_level_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Each token a word, so that texts are exactly as long as is wanted."""
    table = {"<pad>": 0, "<end>": 1} | {f"w{number}": number for number in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>",
        chat_template="{{ messages[0].content }}",
    )  # fmt: skip


def _random_model(
    vocabulary: int, width: int, layers: int, seed: int, device: torch.device
) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 64 or 1, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with seeded(seed, device), torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def random_texts(count: int, context: int, vocabulary: int, prompt: int = 16) -> list[tuple[str, str]]:
    """Statements of `prompt` tokens, and completions that fill the context with the token that ends them."""
    chance = random.Random(0)

    def some(length: int) -> str:
        return " ".join(f"w{chance.randrange(2, vocabulary)}" for _ in range(length))

    return [(some(prompt), some(context - prompt - 1)) for _ in range(count)]


def whole_notebooks(on_done: Callable[[], object] = lambda: None) -> list[Row]:
    """Seconds of every notebook of the course in a fresh kernel, its start included."""
    import nbformat

    from kdlib.course.build.execute import execute, find_notebooks, find_root

    root = find_root(Path.cwd())
    rows = []
    for name in find_notebooks(root):
        path = root / "notebooks" / f"{name}.ipynb"
        seconds = 60 * execute(nbformat.read(path, as_version=4), path.parent, name)
        rows.append(Row("notebooks", name, "fresh kernel", seconds=seconds, low=seconds, high=seconds))
        on_done()
    return rows
