"""SmolLM2 teaches a student with another tokenizer, across which single tokens cannot be compared.

The student is SmolLM2 itself with twelve of its thirty blocks and a vocabulary of a twelfth the size, trained
on the texts, whose embeddings are means of the old ones. Three arms learn from the same English that Python
ships, in the same order: from the text alone, and from the text beside ULD or beside the aligned loss. The
tokenizers differ, so the models are scored in nats a byte.

Each arm's learning rate is chosen on validation, with one seed. The test texts are scored once for each
finished student. Every finished piece is on disk: an interrupted study goes on when it is started again.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdlib.course.studies.real_model import LanguageStudy, python_texts
from kdlib.course.studies.records import by_arm, verdicts
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.scores import score_texts
from kdlib.language.models.prune import block_importance, prune_layers
from kdlib.language.models.transfer import transfer_vocabulary
from kdlib.runtime import Precision
from kdlib.storage import fingerprint

# What an arm gives to `distill_language_model`. ULD has its paper's weight, 1.5 beside a cross-entropy of 1.
ARMS: dict[str, dict[str, object]] = {
    "hard labels": {"alpha": 1.0},
    "ULD": {"alpha": 0.4, "across_tokenizers": "uld"},
    "aligned": {"alpha": 0.5, "across_tokenizers": "aligned"},
}
PAIRS = (("aligned", "hard labels"), ("ULD", "hard labels"), ("aligned", "ULD"))
LEFT_OUT = ("key", "arm", "seed", "seconds")
_AS_IT_STANDS = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass(frozen=True)
class OtherTokenizerRecipe:
    """Sizes of the study."""

    vocabulary: int = 4096  # tokens of the student, of which 257 are bytes and the end
    layers: int = 12
    read: int = 40  # characters of a text that are only read, up to the next space
    length: int = 240  # characters of a text in all; shorter ones are left out
    steps: int = 12
    batch_size: int = 4
    lrs: tuple[float, ...] = (2.5e-4, 5e-4, 1e-3, 2e-3)
    measured_on: int = 12  # texts, for the importance of the blocks
    validation: int = 16  # texts
    test: int = 60
    precision: Precision = "bf16"  # of the teacher, and of the products in which a student learns


SMALL = OtherTokenizerRecipe()


@dataclass(frozen=True)
class Beginning:
    """The beginning of a text, cut off: what is read, and what is learned."""

    statement: str
    text: str
    finished: bool = False


@dataclass(frozen=True)
class OtherTokenizerStudy(LanguageStudy):
    """The study of one teacher."""

    recipe: OtherTokenizerRecipe = SMALL

    @cached_property
    def parts(self) -> dict[str, list[Beginning]]:
        """Beginnings of texts, each in one part."""
        texts = [text[: self.recipe.length] for text in self.texts or python_texts()]
        whole = self.recipe.length
        texts = [text for text in texts if len(text) == whole and " " in text[self.recipe.read :]]
        # A first study scored its students on texts of another draw: data/results/README.md.
        random.Random("other tokenizer, second study").shuffle(texts)
        cuts = [text.index(" ", self.recipe.read) for text in texts]
        begun = [Beginning(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]
        test, validation = self.recipe.test, self.recipe.test + self.recipe.validation
        return {"test": begun[:test], "validation": begun[test:validation], "train": begun[validation:]}

    @cached_property
    def teachers_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's, without its template of conversations."""
        self.tokenizer.chat_template = _AS_IT_STANDS
        return self.tokenizer

    @cached_property
    def students_tokenizer(self) -> PreTrainedTokenizerBase:
        """A byte-level BPE trained on the texts to learn from."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        settings = trainers.BpeTrainer(
            vocab_size=self.recipe.vocabulary, special_tokens=["<end>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator((b.statement + b.text for b in self.parts["train"]), settings)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<end>", chat_template=_AS_IT_STANDS
        )

    @cached_property
    def teacher(self) -> PreTrainedModel:
        return self.cast(self.start())

    def begun(self) -> PreTrainedModel:
        """A student before its first step."""
        texts = [b.statement + b.text for b in self.parts["train"][: self.recipe.measured_on]]
        found = self.once(["importance"], lambda: {
            "importance": block_importance(self.loaded[0], self.tokenizer, texts).tolist()})  # fmt: skip
        ranked = torch.tensor(found["importance"]).topk(self.recipe.layers).indices.tolist()
        pruned = prune_layers(self.loaded[0], keep=sorted(ranked))
        return transfer_vocabulary(pruned, self.tokenizer, self.students_tokenizer)

    def run(self, arm: str, seed: int, lr: float, part: str = "test") -> dict:
        """Train one student; score it once."""

        def run() -> dict:
            drawn = random.Random(f"{seed} texts").sample(
                self.parts["train"], self.recipe.steps * self.recipe.batch_size
            )
            student = self.begun()
            teacher = {} if ARMS[arm]["alpha"] == 1 else {
                "teacher": self.teacher, "teacher_tokenizer": self.teachers_tokenizer}  # fmt: skip
            history = distill_language_model(
                student, self.students_tokenizer, drawn, **teacher, **ARMS[arm], lr=lr, seed=seed,
                steps=self.recipe.steps, batch_size=self.recipe.batch_size, precision=self.recipe.precision,
                progress=self.progress,
            )  # fmt: skip
            return {"arm": arm, "seed": seed, "lr": lr, "tokens": history.tokens_trained,
                    "seconds": history.seconds} | self._scored(student, self.students_tokenizer, part)

        return self.once([arm, seed, lr, part], run)

    def _scored(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str) -> dict:
        """Nats a byte, what each text adds to their mean, and tokens a byte."""
        texts = self.parts[part]
        scores = score_texts(model, tokenizer, texts)
        size = sum(len(b.text.encode()) for b in texts)
        nats = scores.nll * scores.tokens
        return {"nll": float(nats.sum()) / size, "tokens_a_byte": int(scores.tokens.sum()) / size,
                "nll_by_text": [round(x, 6) for x in (nats * len(texts) / size).tolist()]}  # fmt: skip

    def tried(self) -> list[dict]:
        """Each arm with each learning rate, on validation."""
        return [self.run(arm, 0, lr, "validation") for arm in ARMS for lr in self.recipe.lrs]

    def chosen(self, arm: str) -> float:
        """The learning rate of the fewest nats on validation."""
        return min(self.recipe.lrs, key=lambda lr: self.run(arm, 0, lr, "validation")["nll"])

    def results(self, seeds: Sequence[int]) -> dict[str, object]:
        """Do what has not been done yet, and put everything together."""
        tried = self.tried()
        runs = [self.run(arm, seed, self.chosen(arm)) for seed in seeds for arm in ARMS]
        whole = self.loaded[0], self.teachers_tokenizer
        arms = by_arm(runs, LEFT_OUT)
        return {
            **self.described(seeds),
            "texts": {name: sum(len(b.text.encode()) for b in part) for name, part in self.parts.items()}
            | {"fingerprint": fingerprint([b.statement + b.text for b in self.parts["test"]])},
            "teacher": self.once(["teacher"], lambda: self._scored(*whole, "test")),
            "untrained": self.once(
                ["untrained"], lambda: self._scored(self.begun(), self.students_tokenizer, "test")),
            "choices": tried, "arms": arms,
            "verdicts": verdicts(
                {arm: {"nll": [torch.tensor(texts) for texts in column["nll_by_text"]]}
                 for arm, column in arms.items()}, PAIRS, loss="nll"),
        }  # fmt: skip


def report(results: Mapping) -> str:
    """What the study found, as text."""
    lines = [f"{'':14}{'nats a byte':>12}"]
    ends = {"teacher": [results["teacher"]["nll"]], "as made": [results["untrained"]["nll"]]}
    for name, values in (ends | {arm: column["nll"] for arm, column in results["arms"].items()}).items():
        lines.append(f"{name:14}{sum(values) / len(values):12.3f}")
    lines += [f"\n{pair}\n{found['text']}" for pair, found in results["verdicts"].items()]
    return "\n".join(lines)
