"""What it costs that a teacher is only a server: the loss from a served cache beside the live teacher's.

    vllm serve data/downloads/smollm2 --served-model-name SmolLM2 --dtype float32 --max-logprobs 64
    PYTHONPATH=tests python -m benchmarks.served http://localhost:8000/v1 SmolLM2 \\
        --server "vLLM 0.32.0 on a CPU, float32" --out data/results

writes served_teacher.json. The texts are English that Python ships, in pieces of 256 tokens; the students are
SmolLM2-135M-Instruct without some of its blocks, not healed. Every loss is a mean over the same tokens, at
T = 1: against all of the live teacher's logits; against its k largest and their tail; and against what the
server says, in float16 and packed into bits.
"""

import argparse
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.cache.compact import compact_bytes, pack, unpack
from kdlib.course.studies.real_model import python_texts
from kdlib.language.distill.batches import TokenExample
from kdlib.language.distill.served import cache_served_tokens
from kdlib.language.documents import encode_documents
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.prune import prune_layers
from kdlib.language.models.smollm2 import fetch_smollm2, origin
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.top_k import TopK, top_k_loss, top_k_of
from kdlib.runtime import describe_environment
from kdlib.storage import write_json

__all__ = ["measure"]

PIECES, CONTEXT = 24, 256
LEFT_OUT = {"29 of 30 blocks": (20,), "20 of 30 blocks": tuple(range(1, 30, 3))}
K, COMPACT_K, QWEN_K = 64, 50, 46  # 50 of SmolLM2's 49,152 and 46 of Qwen's 151,665 take 127 bytes
DIVERGENCES = ("forward", "reverse")


def measure(
    url: str, model: str, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenExample], students: Mapping[str, PreTrainedModel], folder: Path,
    *, ks: tuple[int, int, int] = (K, COMPACT_K, QWEN_K),
) -> dict[str, object]:  # fmt: skip
    """Losses of the students against each form of the teacher, and how far the server's numbers are off."""
    k, compact_k, other_k = ks
    served = cache_served_tokens(url, model, tokenizer, examples, folder / "float16", top_k=k, progress=True)
    compact = cache_served_tokens(
        url, model, tokenizer, examples, folder / "compact", top_k=compact_k, compact=True, progress=True
    )
    width = served.manifest["width"]
    teachers: dict[str, Callable[[Tensor, Tensor], Tensor | TopK]] = {
        "live, all": lambda logits, rows: logits,
        **{f"live, top {one}": lambda logits, rows, one=one: top_k_of(logits, one) for one in ks},
        **{f"live, top {one}, compact": lambda logits, rows, one=one: _through_bytes(logits, one, width)
           for one in (compact_k, other_k)},
        f"served, top {k}": lambda logits, rows: served.top_k(rows),
        f"served, top {compact_k}, compact": lambda logits, rows: compact.top_k(rows),
    }  # fmt: skip
    sums = {name: {form: dict.fromkeys(DIVERGENCES, 0.0) for form in teachers} for name in students}
    same, furthest, tail, tail_off = 0, 0.0, 0.0, 0.0
    for number, example in enumerate(examples):
        rows = torch.arange(*served.starts[number : number + 2])
        logits = _logits(teacher, example, width)
        exact = top_k_of(logits, k)
        told, log_tail = served.top_k(rows), exact.log_tail - exact.log_total
        tail += log_tail.exp().sum().item()
        tail_off = max(tail_off, (told.log_tail - log_tail).abs().max().item())
        same += (exact.indices.sort(-1).values == told.indices.sort(-1).values).all(-1).sum().item()
        logs = logits.log_softmax(-1).gather(-1, told.indices)
        furthest = max(furthest, (logs - told.values).abs().max().item())
        forms = {form: make(logits, rows) for form, make in teachers.items()}
        for name, student in students.items():
            own = _logits(student, example, width)
            for form, given in forms.items():
                for divergence in DIVERGENCES:
                    sums[name][form][divergence] += _loss(own, given, divergence)
    return {
        "texts": len(examples),
        "tokens": len(served),
        "vocabulary": width,
        "bytes_a_token": {str(served.manifest["top_k"]): served.bytes_per_token,
                          f"{compact_k}, compact": compact.bytes_per_token,
                          f"{QWEN_K} of Qwen's 151,665, compact": compact_bytes(QWEN_K, 151_665)},
        f"mass_beyond_top_{k}": tail / len(served),
        "same_tokens_kept": same / len(served),
        "largest_difference_of_log_probabilities": furthest,
        "largest_difference_of_log_tails": tail_off,
        "loss": {
            name: {form: {one: total / len(served) for one, total in by_divergence.items()}
                   for form, by_divergence in by_form.items()}
            for name, by_form in sums.items()
        },
    }  # fmt: skip


@torch.no_grad()
def _logits(model: PreTrainedModel, example: TokenExample, width: int) -> Tensor:
    """(n, width): those that predict the completion."""
    ids = torch.tensor([[*example.prompt, *example.completion]])
    return model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1, :width].float()


def _through_bytes(logits: Tensor, k: int, width: int) -> TopK:
    top = top_k_of(logits, k)
    total = top.log_total
    logs = TopK(top.values - total.unsqueeze(-1), top.indices, top.log_tail - total)
    return unpack(pack(logs, width), width)


def _loss(student: Tensor, teacher: Tensor | TopK, divergence: str) -> float:
    compare = top_k_loss if isinstance(teacher, TopK) else soft_target_loss
    each = compare(student, teacher, temperature=1.0, divergence=divergence, reduction="none")
    return each.double().sum().item()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("model", help="its name there")
    parser.add_argument("--server", required=True, help="what it is: name, version, dtype")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(argv)
    folder = fetch_smollm2()
    teacher, tokenizer = load_checkpoint(str(folder), dtype="float32")
    texts = random.Random(0).sample(python_texts(), 400)
    whole = [one for one in encode_documents(tokenizer, texts, context=CONTEXT) if len(one) == CONTEXT]
    blocks = range(teacher.config.num_hidden_layers)
    students = {name: prune_layers(teacher, keep=[one for one in blocks if one not in left_out])
                for name, left_out in LEFT_OUT.items()}  # fmt: skip
    with TemporaryDirectory() as caches:
        results = measure(
            given.url, given.model, teacher, tokenizer, whole[:PIECES], students, Path(caches)
        )
    where = {"environment": describe_environment(), "server": given.server, "model": origin(folder)}
    write_json(given.out / "served_teacher.json", where | results)
    for name, by_form in results["loss"].items():
        for form, by_divergence in by_form.items():
            print(name, form, *(f"{one} {value:.5f}" for one, value in by_divergence.items()), sep=", ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
