"""Healing in full: what brings a language model back that has lost a third or a half of its layers?

The teacher is SmolLM2-135M-Instruct; the students are its copies without the blocks that change least. They
learn from English that every Python ships (its documentation and docstrings), all arms from the same tokens
in the same order: cross-entropy on the text; the teacher's whole distribution at each token, or its 64
likeliest tokens from a cache; half of each. The smallest students of "logits" then go on, from texts or from
what they write themselves.

The learning rates of "cross-entropy" and of "logits", which the others share, are chosen on validation, with
one seed, for the student of the fewest layers.
The test texts are scored once for each finished student. Every finished piece is on disk: an interrupted
study goes on when it is started again.
"""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from kdlib.cache.tokens import CachedTokens
from kdlib.cost import time_call
from kdlib.course.studies.real_model import LanguageStudy, python_texts
from kdlib.course.studies.records import by_arm, verdicts
from kdlib.language.distill.batches import TokenExample
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.scores import TextScores, score_texts
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.documents import encode_documents
from kdlib.language.models.prune import block_importance, prune_layers
from kdlib.runtime import Precision
from kdlib.storage import fingerprint

# What an arm gives to `distill_language_model`, besides the teacher.
ARMS: dict[str, dict[str, float]] = {
    "cross-entropy": {"alpha": 1.0}, "logits": {"alpha": 0.0}, "cached": {"alpha": 0.0},
    "both": {"alpha": 0.5},
}  # fmt: skip
TUNED = ("cross-entropy", "logits")
PAIRS = tuple((arm, "cross-entropy") for arm in ARMS if arm != "cross-entropy") + (("cached", "logits"),)
FIGURES = ("nll", "kl", "agreement")
LEFT_OUT = ("key", "arm", "layers", "seed", "seconds")
FURTHER_FROM = "logits"  # the students that go on afterwards, in one of two ways
FURTHER = ("logits", "on-policy")


@dataclass(frozen=True)
class HealingRecipe:
    """Sizes of the study."""

    layers: tuple[int, ...] = (20, 15)  # of the students
    context: int = 256  # tokens of a piece
    steps: int = 24
    batch_size: int = 4  # pieces of a step
    lrs: tuple[float, ...] = (2e-4, 5e-4, 1.2e-3)
    top_k: int = 64
    measured_on: int = 20  # pieces of the training texts, for the importance of the blocks
    validation: int = 20  # pieces
    test: int = 40
    further_steps: int = 10  # on-policy, and as many more on texts
    further_lr: float = 1e-4
    precision: Precision = "bf16"  # of the teacher, and of the products in which a student learns


SMOLLM2 = HealingRecipe()


@dataclass(frozen=True)
class HealingStudy(LanguageStudy):
    """The study of one teacher."""

    recipe: HealingRecipe = SMOLLM2

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The model in the precision in which it teaches; students are cut from the one in float32."""
        return self.cast(self.start())

    @cached_property
    def parts(self) -> dict[str, list[TokenExample]]:
        """Pieces of whole texts: test and validation first, the rest to learn from."""
        texts = list(self.texts or python_texts())
        random.Random("healing").shuffle(texts)
        wanted, parts = {"test": self.recipe.test, "validation": self.recipe.validation}, {}
        for name, count in wanted.items():
            parts[name] = self.pieces(texts, count)
        return {**parts, "train": encode_documents(self.tokenizer, texts, context=self.recipe.context)}

    @cached_property
    def importance(self) -> list[float]:
        """How much each block of the teacher changes its input, on texts to learn from."""

        def run() -> dict:
            pieces = random.Random("blocks").sample(self.parts["train"], self.recipe.measured_on)
            texts = [self.tokenizer.decode(piece.prompt + piece.completion) for piece in pieces]
            return {"importance": block_importance(self.loaded[0], self.tokenizer, texts).tolist()}

        return self.once(["importance"], run)["importance"]

    def kept(self, layers: int) -> list[int]:
        """The blocks that a student of so many layers keeps: those that change most, in their order."""
        ranked = sorted(range(len(self.importance)), key=lambda block: -self.importance[block])
        return sorted(ranked[:layers])

    def pruned(self, layers: int) -> PreTrainedModel:
        return prune_layers(self.loaded[0], keep=self.kept(layers))

    def drawn(self, seed: int, steps: int | None = None) -> list[TokenExample]:
        """The pieces that a seed learns from, each once."""
        count = (steps or self.recipe.steps) * self.recipe.batch_size
        return random.Random(f"{seed} pieces").sample(self.parts["train"], count)

    def run(self, arm: str, layers: int, seed: int, lr: float, *, test: bool = True) -> dict:
        """Heal one student; score it once, on test or on validation."""

        def run() -> dict:
            teacher = self._cache(seed) if arm == "cached" else self.teacher
            student = self.pruned(layers)
            history = distill_language_model(
                student, self.tokenizer, self.drawn(seed), teacher=teacher, **ARMS[arm], lr=lr, seed=seed,
                steps=self.recipe.steps, batch_size=self.recipe.batch_size, precision=self.recipe.precision,
                progress=self.progress,
            )
            if test and arm == FURTHER_FROM:
                student.save_pretrained(self._healed(layers, seed))
            found = {"arm": arm, "layers": layers, "seed": seed, "lr": lr, "tokens": history.tokens_trained,
                     "seconds": history.seconds}
            return found | self._examined(student, "test" if test else "validation")

        return self.once([arm, layers, seed, lr, test], run)

    def _healed(self, layers: int, seed: int) -> Path:
        return self.folder / f"{FURTHER_FROM}-{layers}-{seed}"

    def further(self, way: str, layers: int, seed: int) -> dict:
        """Go on with the healed student of "logits", on new pieces: on them, or on how it continues them.

        On-policy it reads the first half of each and writes as many tokens.
        """

        def run() -> dict:
            pieces = self.drawn(seed + 1000, self.recipe.further_steps)
            how = {}
            if way == "on-policy":
                half = self.recipe.context // 2
                pieces = [TokenExample((*p.prompt, *p.completion)[:half]) for p in pieces if len(p) > half]
                how = {"on_policy": True, "max_new_tokens": half}
            student = AutoModelForCausalLM.from_pretrained(self._healed(layers, seed), dtype=torch.float32)
            history = distill_language_model(
                student, self.tokenizer, pieces, teacher=self.teacher, alpha=0.0, **how, seed=seed,
                steps=self.recipe.further_steps, lr=self.recipe.further_lr, progress=self.progress,
                batch_size=self.recipe.batch_size, precision=self.recipe.precision,
            )
            found = {"arm": way, "layers": layers, "seed": seed, "tokens": history.tokens_trained,
                     "seconds": history.seconds}
            return found | self._examined(student, "test")

        return self.once(["further", way, layers, seed], run)

    def _cache(self, seed: int) -> CachedTokens:
        return cache_teacher_tokens(self.teacher, self.tokenizer, self.drawn(seed),
                                    self.folder / f"teacher-{seed}", top_k=self.recipe.top_k)

    def _examined(self, student: PreTrainedModel, part: str) -> dict:
        return _figures(score_texts(student, self.tokenizer, self.parts[part], teacher=self.teacher))

    def untrained(self, layers: int, part: str = "test") -> dict:
        """The student as it was cut, before any step; of all layers, the teacher itself."""
        return self.once(["untrained", layers, part], lambda: self._examined(self.pruned(layers), part))

    def chosen(self, arm: str) -> float:
        """The learning rate of the lowest KL to the teacher on validation."""
        arm = arm if arm in TUNED else "logits"
        return min(self.recipe.lrs, key=lambda lr: self._tried(arm, lr)["kl"])

    def _tried(self, arm: str, lr: float) -> dict:
        return self.run(arm, min(self.recipe.layers), 0, lr, test=False)

    def cost(self, layers: int, tokens: int = 64) -> dict[str, float]:
        """Parameters, and tokens a second that a model of so many layers writes, one text alone."""

        def run() -> dict:
            model = self.pruned(layers)
            start = torch.zeros((1, 1), dtype=torch.long, device=model.device)
            settings = GenerationConfig(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
                                        pad_token_id=self.tokenizer.eos_token_id, use_cache=True)
            write = partial(model.generate, start, attention_mask=start + 1, generation_config=settings)
            seconds = time_call(write, model.device, repeats=5)
            return {"parameters": model.num_parameters(),
                    "tokens_a_second": tokens / statistics.median(seconds)}

        return self.once(["cost", layers, tokens], run)

    def results(self, seeds: Sequence[int]) -> dict[str, object]:
        """Do what has not been done yet, and put everything together."""
        self.tried()
        sizes = self.recipe.layers
        whole = self.teacher.config.num_hidden_layers
        by_size = {}
        for layers in sizes:
            runs = [self.run(arm, layers, seed, self.chosen(arm)) for seed in seeds for arm in ARMS]
            go_on = FURTHER if layers == min(sizes) else ()
            more = [self.further(way, layers, seed) for seed in seeds for way in go_on]
            cut, arms, further = self.untrained(layers), by_arm(runs, LEFT_OUT), by_arm(more, LEFT_OUT)
            by_size[str(layers)] = {
                "kept": self.kept(layers), "untrained": cut, "cost": self.cost(layers),
                "arms": arms, "further": further,
                "gap_closed": {arm: 1 - sum(column["kl"]) / len(column["kl"]) / cut["kl"]
                               for arm, column in (arms | _then(further)).items()},
            }
        return {
            **self.described(seeds),
            "texts": {name: sum(len(piece.completion) for piece in part) for name, part in self.parts.items()}
            | {"fingerprint": fingerprint([[*p.prompt, *p.completion] for p in self.parts["test"]])},
            "importance": self.importance,
            "teacher": {**self.untrained(whole), "layers": whole, "cost": self.cost(whole)},
            "choices": self.tried(), "students": by_size,
            "verdicts": {size: _verdicts(found) for size, found in by_size.items()},
        }

    def tried(self) -> list[dict]:
        """The arms that choose, with each learning rate, on validation."""
        return [self._tried(arm, lr) for arm in TUNED for lr in self.recipe.lrs]


def report(results: Mapping) -> str:
    """What the study found, as text: tables and verdicts."""
    recipe = results["recipe"]
    head = f"{'':24}{'NLL':>8}{'KL':>8}{'same token':>12}{'gap closed':>12}"
    lines = [
        f"teacher: {results['teacher']['layers']} layers, NLL {results['teacher']['nll']:.3f} nats a token, "
        f"writes {results['teacher']['cost']['tokens_a_second']:.1f} tokens a second",
        f"{results['seeds']} seeds; each arm learns from {recipe['steps'] * recipe['batch_size']} pieces of "
        f"{recipe['context']} tokens, and is scored on {results['texts']['test']:,} tokens",
    ]
    for layers, found in results["students"].items():
        faster = found["cost"]["tokens_a_second"] / results["teacher"]["cost"]["tokens_a_second"]
        lines += ["", f"{layers} layers, {faster:.2f} times as fast as the teacher", head]
        cut = found["untrained"]
        columns_of = {"as cut": {name: [cut[name]] for name in FIGURES}, **found["arms"],
                      **_then(found["further"])}
        for name, column in columns_of.items():
            nll, kl, same = (sum(column[figure]) / len(column[figure]) for figure in FIGURES)
            closed = f"{100 * found['gap_closed'].get(name, 0):.1f} %"
            lines.append(f"{name:24}{nll:8.3f}{kl:8.3f}{100 * same:10.1f} %{closed:>12}")
        for measure, table in results["verdicts"][layers].items():
            lines += [f"\n{measure.upper()}, {pair}\n{found['text']}" for pair, found in table.items()]
    return "\n".join(lines)


def _figures(scores: TextScores) -> dict[str, object]:
    """Means over all tokens, and what each text adds to them."""
    means = {name: scores.mean(name) for name in FIGURES}
    return means | {f"{name}_by_text": scores.by_text(name) for name in ("nll", "kl")}


def _then(further: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Ways to go on, by names that no arm has."""
    return {f"then {way}": column for way, column in further.items()}


def _verdicts(found: Mapping[str, Mapping]) -> dict[str, dict]:
    """Of one size of students, over seeds and test texts together, by measure."""
    ways = _then(found["further"])
    pairs = (*PAIRS, ("then on-policy", "then logits")) if ways else PAIRS
    return {
        measure: verdicts(
            {arm: {measure: [torch.tensor(values) for values in column[f"{measure}_by_text"]]}
             for arm, column in (found["arms"] | ways).items()}, pairs, loss=measure,
        )
        for measure in ("kl", "nll")
    }  # fmt: skip
