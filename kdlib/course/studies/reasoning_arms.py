"""The ways to teach a small model to solve chains of cages that the reasoning experiment compares.

Every arm of one seed starts from the same base model and learns from the same problems. What differs is what
the student reads about them: the answers, or the texts that a teacher wrote. Two budgets: "steps", the same
number of steps for all, and "compute", the same number of tokens read in training (prompts and completions),
so that an arm with short texts takes more steps. A token costs the student 6 · parameters operations to
learn from and 2 to write; the teacher's own work, done once and kept, is not in the budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.course.studies.pretraining_data import Text, texts
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.small import Family, load_model, tiny_model
from kdlib.language.puzzles.make import PuzzleSplits, puzzle_splits
from kdlib.language.puzzles.puzzle import Puzzle
from kdlib.language.puzzles.text import Style, statement, written_solution
from kdlib.language.traces.collect import Trace
from kdlib.language.traces.select import filter_traces
from kdlib.runtime import Precision

__all__ = [
    "ARMS", "Budget", "CHAINS", "LIVE", "Recipe", "Stage", "mean_tokens", "reading", "style_of",
    "tokens_a_step", "train_base", "teach_student", "train_teacher",
]  # fmt: skip

Budget = Literal["steps", "compute"]

ARMS = ("answers", "unverified", "verified", "shortest", "suppose", "equations", "logits", "on-policy")


@dataclass(frozen=True)
class Stage:
    """One training run: `steps` steps of `batch_size` texts, highest learning rate `lr`."""

    steps: int
    lr: float
    batch_size: int = 32


@dataclass(frozen=True)
class Recipe:
    """Puzzles, sizes of models, and how they are trained.

    Attributes:
        heads: least and most in a cage, in training and test; `beyond_heads` out of that range.
        sizes: problems in `pool` to train from, validation, test and beyond.
        teacher_width, student_width, layers, families: see `tiny_model`.
        school_teacher, school_student: the base models' training.
        teacher: the teacher's training on solved chains, after its school.
        student: what "verified" takes; `answers_lr` is for the arm "answers".
        alpha, temperature: of the arm "logits".
        on_policy: that stage, after `traces_share` of the budget was spent on traces.
        samples: traces of each problem.
        max_new_tokens: where an answer is cut off.
    """

    animals: tuple[str, ...] = ("chickens", "rabbits", "ants", "spiders")
    heads: tuple[int, int] = (2, 8)
    beyond_heads: tuple[int, int] = (9, 12)
    pool: int = 1600
    validation: int = 200
    test: int = 300
    beyond: int = 200
    teacher_width: int = 120
    student_width: int = 48
    layers: int = 2
    teacher_family: Family = "qwen2"
    student_family: Family = "qwen2"
    school_teacher: Stage = Stage(300, 5e-3)
    school_student: Stage = Stage(600, 6e-3)
    teacher: Stage = Stage(240, 3e-3)
    student: Stage = Stage(200, 5e-3)
    answers_lr: float = 8e-3
    alpha: float = 0.5
    temperature: float = 2.0
    on_policy: Stage = Stage(8, 1e-3, 192)
    traces_share: float = 2 / 3
    samples: int = 4
    max_new_tokens: int = 128
    precision: Precision = "auto"

    def chains(self) -> PuzzleSplits:
        """Disjoint chains of two cages: `train` is the pool that each seed draws its problems from."""
        return puzzle_splits(
            "chain", train=self.pool, validation=self.validation, test=self.test, beyond=self.beyond,
            heads=self.heads, beyond_heads=self.beyond_heads, animals=self.animals, seed=0,
        )  # fmt: skip

    def cages(self) -> tuple[Puzzle, ...]:
        """Single cages, what a base model is schooled with."""
        low, high = self.heads
        count = sum(n - 1 for n in range(low, high + 1)) * len(self.animals) * (len(self.animals) - 1) // 2
        return puzzle_splits("pair", train=count * 9 // 10, validation=0, test=0, heads=self.heads,
                             animals=self.animals, seed=0).train  # fmt: skip


CHAINS = Recipe()
"""That of the committed results."""

LIVE = replace(CHAINS, beyond=60, student=Stage(140, 5e-3), on_policy=Stage(5, 1e-3, 192))
"""The same with less reading for the students, for the notebook."""


def train_base(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    teacher: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> PreTrainedModel:
    """A base model of the teacher's or the student's size, from `folder` if it was finished there."""
    width, family, stage = (
        (recipe.teacher_width, recipe.teacher_family, recipe.school_teacher)
        if teacher
        else (recipe.student_width, recipe.student_family, recipe.school_student)
    )
    lessons = texts(recipe.cages(), heads=recipe.heads, animals=recipe.animals, seed=0)

    def train(output_dir: Path) -> None:
        model = tiny_model(tokenizer, width=width, layers=recipe.layers, family=family, seed=seed)
        _learn(recipe, model, tokenizer, lessons, stage, output_dir, seed=seed, progress=progress)

    return _made(folder, train)


def train_teacher(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    puzzles: Sequence[Puzzle],
    *,
    share: float = 1.0,
    progress: bool = False,
) -> PreTrainedModel:
    """The reasoner: a larger base model that has read solved chains, in both styles.

    Its solutions come from a program. DeepSeek-R1's came from reinforcement learning, which takes more than
    two cores and a few minutes; what follows, from traces to student, is the same.

    Args:
        puzzles: the chains it reads.
        share: of its steps on chains; below 1 for a teacher made worse on purpose.
    """
    styles: tuple[Style, Style] = ("suppose", "equations")
    solved = [
        (statement(puzzle), written_solution(puzzle, styles[number % 2]))
        for number, puzzle in enumerate(puzzles)
    ]
    stage = Stage(max(1, round(share * recipe.teacher.steps)), recipe.teacher.lr, recipe.teacher.batch_size)

    def train(output_dir: Path) -> None:
        model = train_base(
            recipe, tokenizer, folder.parent / "teacher-base", teacher=True, seed=1000, progress=progress
        )
        _learn(recipe, model, tokenizer, solved, stage, output_dir, seed=1000, progress=progress)

    return _made(folder, train)


def reading(arm: str, puzzles: Sequence[Puzzle], traces: Sequence[Trace]) -> list[Text]:
    """The texts that an arm reads: (statement, completion) pairs.

    Raises:
        ValueError: for an arm that is none of `ARMS`, or if no finished trace passes its filter.
    """
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}; got {arm!r}")
    if arm == "answers":
        return [(statement(puzzle), written_solution(puzzle, think=False)) for puzzle in puzzles]
    style = (lambda text: style_of(text) == arm) if arm in ("suppose", "equations") else None
    # What was cut off is no text to learn from, verified or not.
    kept = filter_traces(
        [trace for trace in traces if trace.finished],
        correct=arm != "unverified", shortest=arm == "shortest", style=style, repeats=True,
    )  # fmt: skip
    if not kept:
        raise ValueError(
            f"no trace passes the filter of arm {arm!r}; collect more, or train the teacher longer"
        )
    return [(trace.statement, trace.text) for trace in kept]


def teach_student(
    recipe: Recipe,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arm: str,
    texts: Sequence[Text],
    *,
    teacher: PreTrainedModel | None = None,
    budget: Budget = "compute",
    budget_tokens: float,
    lr: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Teach a base model in place, in one of the ways of `ARMS`.

    Args:
        texts: what `reading` gave.
        teacher: needed by "logits" and "on-policy".
        budget: see the module.
        budget_tokens: tokens of the budget "compute"; those of the reference arm.
        lr: other than the recipe's.

    Returns:
        "steps" (of texts), "tokens" read in them, "written" on-policy, "seconds".

    Raises:
        ValueError: for another budget, or an arm that lacks its teacher.
    """
    if budget not in get_args(Budget):
        raise ValueError(f'budget must be "steps" or "compute"; got {budget!r}')
    if teacher is None and arm in ("logits", "on-policy"):
        raise ValueError(f"arm {arm!r} needs a teacher; got None")
    stage = recipe.student
    lr = lr or (recipe.answers_lr if arm == "answers" else stage.lr)
    per_step = tokens_a_step(tokenizer, texts, stage.batch_size)
    steps = stage.steps
    if budget == "compute":
        steps = max(1, round(budget_tokens / per_step))
    learnt = max(1, round(steps * recipe.traces_share)) if arm == "on-policy" else steps
    given = {}
    if arm == "logits":
        given = {"teacher": teacher, "alpha": recipe.alpha, "temperature": recipe.temperature}
    history = _learn(
        recipe, student, tokenizer, texts, Stage(learnt, lr, stage.batch_size), None, seed=seed,
        progress=progress, **given,
    )  # fmt: skip
    figures = {"steps": learnt, "tokens": round(learnt * per_step), "written": 0,
               "seconds": history.seconds}  # fmt: skip
    if arm == "on-policy":
        more = _learn(
            recipe, student, tokenizer, [text for text, _ in texts], recipe.on_policy, None, seed=seed,
            progress=progress, teacher=teacher, on_policy=True, max_new_tokens=recipe.max_new_tokens,
        )  # fmt: skip
        figures["written"] = more.tokens_trained
        figures["seconds"] += more.seconds
    return figures


def tokens_a_step(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], batch_size: int) -> float:
    """Tokens of prompts and completions that a step reads, on average; an epoch's last step reads fewer."""
    return mean_tokens(tokenizer, texts) * len(texts) / math.ceil(len(texts) / batch_size)


def mean_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> float:
    """Tokens of prompt and completion together, on average."""
    extra = len(tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=True)["input_ids"])
    counted = tokenizer([statement + completion for statement, completion in texts])["input_ids"]
    return sum(map(len, counted)) / len(counted) + extra + 1


def style_of(text: str) -> Style | None:
    """Which style a solution is written in; "suppose" if both occur, None where it has no steps."""
    thought = text.split("</think>")[0]
    if "Suppose" in thought:
        return "suppose"
    return "equations" if "x" in thought.replace(".", " ").split() else None


def _learn(recipe, model, tokenizer, examples, stage: Stage, output_dir, *, seed, progress, **given):
    return distill_language_model(
        model, tokenizer, examples, output_dir, steps=stage.steps, lr=stage.lr, batch_size=stage.batch_size,
        precision=recipe.precision, seed=seed, progress=progress, **given,
    )  # fmt: skip


def _made(folder: Path, train) -> PreTrainedModel:
    """The model in `folder`, trained if it is not there yet; a killed training is resumed."""
    if not (folder / "finished").exists():
        train(folder)
        (folder / "finished").touch()
    return load_model(folder)
