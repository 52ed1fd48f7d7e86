"""The ways to teach a small model to solve chains of cages that the reasoning study compares.

Every arm of one seed starts from the same base model and learns from the same problems: from the answers, or
from texts that a teacher wrote. Afterwards a student that has read traces can go on in one of four ways, of
which two learn from what it writes itself.

The budget counts tokens that go through the student: 1 for a token that it learns from, which is read forward
and backward, and a third for one that it writes. The teacher's work is not in it, and is counted apart.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.course.studies.pretraining_data import Text
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.trainer import student_writes
from kdlib.language.models.small import Family
from kdlib.language.puzzles.make import PuzzleSplits, puzzle_splits
from kdlib.language.puzzles.puzzle import Puzzle
from kdlib.language.puzzles.text import Style, statement, written_solution
from kdlib.language.traces.collect import Trace
from kdlib.language.traces.select import filter_traces
from kdlib.runtime import Precision

ARMS = ("answers", "unverified", "verified", "shortest")
# What a student may do that has read traces: λ, the share of steps in which it writes the texts itself.
FURTHER = {"verified": 0.0, "logits": 0.0, "mixture": 0.5, "on-policy": 1.0}
WRITING = 1 / 3  # price of a token written: forward only, where learning goes forward and twice as far back


@dataclass(frozen=True)
class Stage:
    """One training run: `steps` steps of `batch_size` texts, highest learning rate `lr`."""

    steps: int
    lr: float
    batch_size: int = 32


@dataclass(frozen=True)
class ReasoningRecipe:
    """Puzzles, sizes of models, and how they are trained."""

    animals: tuple[str, ...] = ("chickens", "rabbits", "ants", "spiders")
    heads: tuple[int, int] = (2, 6)  # least and most in a cage, in training and test
    beyond_heads: tuple[int, int] = (7, 9)
    pool: int = 1200  # problems of which a student learns from some
    validation: int = 200
    test: int = 300
    beyond: int = 60
    teacher_width: int = 120
    student_width: int = 48
    layers: int = 2
    teacher_family: Family = "qwen2"
    student_family: Family = "qwen2"
    teacher_pretraining: Stage = Stage(300, 4e-3)
    student_pretraining: Stage = Stage(600, 5e-3)
    teacher: Stage = Stage(240, 3e-3)  # on solved chains, after its pretraining
    student: Stage = Stage(240, 1.2e-2)  # what "verified" takes
    answers_lr: float = 1.2e-2
    further: Stage = Stage(80, 8e-3)  # what "verified" takes afterwards; the others by their price
    on_policy_lr: float = 3e-3
    adam_beta2: float = 0.95  # in short runs the default, 0.999, remembers the first steps too long
    samples: int = 4  # traces of each problem
    max_new_tokens: int = 112
    precision: Precision = "auto"

    def chains(self) -> PuzzleSplits:
        """Disjoint chains of two cages: `train` is the pool that each seed draws its problems from."""
        return puzzle_splits(
            "chain", train=self.pool, validation=self.validation, test=self.test, beyond=self.beyond,
            heads=self.heads, beyond_heads=self.beyond_heads, animals=self.animals, seed=0,
        )

    def cages(self) -> tuple[Puzzle, ...]:
        """Single cages, which the base models have read."""
        low, high = self.heads
        count = sum(n - 1 for n in range(low, high + 1)) * math.comb(len(self.animals), 2)
        return puzzle_splits("pair", train=count * 9 // 10, validation=0, test=0, heads=self.heads,
                             animals=self.animals, seed=0).train


CHAINS = ReasoningRecipe()  # that of the notebook and of the committed results
# The smallest whose teacher solves anything: it knows its eight chains by heart. To try code with.
TINY = ReasoningRecipe(
    animals=("chickens", "rabbits", "ants"), heads=(2, 5), beyond_heads=(6, 7), pool=8, validation=3, test=5,
    beyond=4, teacher_width=48, student_width=16, layers=1, teacher_family="llama",
    teacher_pretraining=Stage(2, 1e-3, 4), student_pretraining=Stage(4, 1e-2, 4), teacher=Stage(120, 1e-2, 8),
    student=Stage(6, 5e-3, 4), answers_lr=7e-3, further=Stage(4, 1e-3, 3), samples=2, max_new_tokens=96,
)


def reading(arm: str, puzzles: Sequence[Puzzle], traces: Sequence[Trace]) -> list[Text]:
    """The texts that an arm reads; a ValueError if no finished trace passes its filter."""
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}; got {arm!r}")
    if arm == "answers":
        return [(statement(puzzle), written_solution(puzzle, think=False)) for puzzle in puzzles]
    finished = [trace for trace in traces if trace.finished]  # the others are no texts to learn from
    kept = filter_traces(finished, correct=arm != "unverified", shortest=arm == "shortest",
                         repeats=True)
    if not kept:
        help = "collect more, or train the teacher longer"
        raise ValueError(f"no trace passes the filter of arm {arm!r}; {help}")
    return [(trace.statement, trace.text) for trace in kept]


def teach_student(
    recipe: ReasoningRecipe, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arm: str,
    texts: Sequence[Text], *, tokens: float | None = None, lr: float | None = None, **how,
) -> dict[str, float]:
    """Teach a base model in place, in one of the ways of `ARMS`, with the texts that `reading` gave.

    It reads so many tokens of prompts and completions; without, it takes as many steps as the recipe says.
    `how` goes to `distill_language_model`.
    """
    per_step = tokens_a_step(tokenizer, texts, recipe.student.batch_size)
    steps = recipe.student.steps if tokens is None else max(1, round(tokens / per_step))
    lr = lr or (recipe.answers_lr if arm == "answers" else recipe.student.lr)
    history = distill_language_model(
        student, tokenizer, texts, **asdict(replace(recipe.student, steps=steps, lr=lr)),
        precision=recipe.precision, adam_beta2=recipe.adam_beta2, **how,
    )
    return {"steps": steps, "tokens": round(steps * per_step), "seconds": history.seconds}


def teach_further(
    recipe: ReasoningRecipe, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, way: str,
    texts: Sequence[Text], *, teacher: PreTrainedModel, lr: float | None = None, **how,
) -> dict[str, float]:
    """Teach a student in place that has read traces, in one of the ways of `FURTHER`, at equal price.

    "verified" reads more of the texts; "logits" has the forward KL to the teacher on them; "on-policy" has
    the reverse KL on texts that it writes to their prompts; "mixture" that too, in half of the steps on the
    given texts (Agarwal et al. 2024, arXiv 2306.13649v3, with λ = 0.5).
    """
    if way not in FURTHER:
        raise ValueError(f"way must be one of {', '.join(FURTHER)}; got {way!r}")
    share, stage = FURTHER[way], recipe.further
    stage = replace(stage, steps=max(1, round(stage.steps / (1 + share * WRITING))),
                    lr=lr or (recipe.on_policy_lr if share else stage.lr))
    soft = {} if way == "verified" else {"teacher": teacher, "alpha": 0.0, "on_policy": share or False}
    if share:
        soft |= {"divergence": "reverse", "max_new_tokens": recipe.max_new_tokens}
    history = distill_language_model(
        student, tokenizer, [asked for asked, _ in texts] if share == 1 else texts, **asdict(stage), **soft,
        precision=recipe.precision, adam_beta2=recipe.adam_beta2, warmup_steps=0.2, **how,  # not to forget
    )
    learnt = history.tokens_trained
    written = sum(tokens for step, tokens in enumerate(history.tokens) if student_writes(step, share))
    return {"steps": stage.steps, "learnt": learnt, "written": written,
            "judged": 0 if way == "verified" else learnt, "seconds": history.seconds}


def tokens_a_step(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], batch_size: int) -> float:
    """Tokens of prompts and completions that a step reads, on average; an epoch's last step reads fewer."""
    turn = [{"role": "user", "content": ""}]
    template = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    counted = tokenizer([statement + completion for statement, completion in texts])["input_ids"]
    mean = sum(map(len, counted)) / len(counted) + len(template) + 1
    return mean * len(texts) / math.ceil(len(texts) / batch_size)


def style_of(text: str) -> Style | None:
    """Which style a solution is written in; "suppose" if both occur, None where it has no steps."""
    thought = text.split("</think>")[0]
    if "Suppose" in thought:
        return "suppose"
    return "equations" if "x" in thought.replace(".", " ").split() else None
