"""DeepSeek's recipe for R1-Distill on a real model: what are verified traces worth to SmolLM2-135M-Instruct?

It answers problems as it is. Then it is fine-tuned, from the same weights and on the same problems, on traces
that work them out, or on the answers alone, until as many tokens have gone through it. The traces are written
by a program, which stands for a teacher, and pass the verifier first, as a teacher's would. Guo et al. 2025,
arXiv 2501.12948, section 2.4.

Every student of one task is also asked the problems of the others, which it has not learned, and is scored on
English text: what has it forgotten? The learning rate of each arm is chosen on validation, for the first task
and with one seed, and used for all. The test parts are opened once for each finished student. Every finished
student is on disk as its figures: an interrupted study goes on when it is started again.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from kdlib.course.studies.real_model import LanguageStudy, python_texts
from kdlib.course.studies.records import by_arm, columns, pack_bits, unpack_bits, verdicts
from kdlib.course.studies.verifiable_tasks import Solved, Task, load_task, read_loosely
from kdlib.language.answers.final_answer import verify_answer
from kdlib.language.distill.batches import TokenExample, tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.scores import score_texts
from kdlib.language.traces.collect import Trace, collect_traces, judged_trace
from kdlib.language.traces.generate import Completion
from kdlib.metrics import interval
from kdlib.runtime import Precision
from kdlib.storage import fingerprint

ARMS = ("answers", "verified")
BEFORE = "before"
PAIRS = (("verified", "answers"), ("verified", BEFORE), ("answers", BEFORE))
LEFT_OUT = ("key", "task", "arm", "seed", "seconds")


@dataclass(frozen=True)
class RealReasoningRecipe:
    """Sizes of the study."""

    tasks: tuple[str, ...] = ("cages", "leg_counting")  # learned, one by each student
    asked: tuple[str, ...] = ("chain_sum", "simple_equations")  # never learned
    problems: int = 400  # that a student learns from
    pool: int = 500  # of which they are drawn
    validation: int = 60
    test: int = 100
    beyond: int = 50
    other: int = 40  # problems of each task that a student has not learned
    steps: int = 120  # of "verified"; "answers" takes as many tokens
    batch_size: int = 4
    lrs: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    adam_beta2: float = 0.95  # in short runs the default, 0.999, remembers the first steps too long
    max_new_tokens: int = 160
    before_tokens: int = 256  # the model as it is takes its time
    texts: int = 30  # pieces of English, of so many tokens
    context: int = 256
    precision: Precision = "bf16"  # of the products in which a student learns, and of its weights afterwards


SMOLLM2 = RealReasoningRecipe()


@dataclass(frozen=True)
class RealReasoningStudy(LanguageStudy):
    """The study of one model, from a copy of which every student begins."""

    recipe: RealReasoningRecipe = SMOLLM2

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All of them, those that are only asked last."""
        recipe = self.recipe
        sizes = {"train": recipe.pool, "validation": recipe.validation, "test": recipe.test,
                 "beyond": recipe.beyond}  # fmt: skip
        only_asked = {"train": 0, "validation": 0, "test": recipe.other, "beyond": 0}
        return {
            name: load_task(name, **(sizes if name in recipe.tasks else only_asked))
            for name in dict.fromkeys((*recipe.tasks, *recipe.asked))
        }

    @cached_property
    def english(self) -> list[TokenExample]:
        """Pieces of English that no student has learned."""
        texts = list(self.texts or python_texts())
        random.Random("english").shuffle(texts)
        return self.pieces(texts, self.recipe.texts)[: self.recipe.texts]

    def drawn(self, task: str, seed: int) -> list[Solved]:
        """The problems that both arms of a seed learn from."""
        return random.Random(f"{seed} problems").sample(self.tasks[task].train, self.recipe.problems)

    def traces(self, task: str, seed: int) -> list[Trace]:
        """What was written to the problems of a seed, verified: those that are right by both verifiers.

        Raises:
            ValueError: of one of the problems there is no trace.
        """
        found = []
        for solved in self.drawn(task, seed):
            if solved.trace is None:
                raise ValueError(f"nothing here works out the problems of {task}: they can only be asked")
            tokens = len(self.tokenizer(solved.trace, add_special_tokens=False)["input_ids"]) + 1
            written = Completion(solved.trace, tokens, finished=True)
            found.append(judged_trace(solved.problem, 0, written, verify_answer))
        return [trace for trace in found if trace.correct and self.tasks[task].verify(trace)]

    def readings(self, task: str, seed: int) -> dict[str, list[tuple[str, str]]]:
        """Statements and completions that each arm learns from: of the same problems in both."""
        traces = self.traces(task, seed)
        answers = {solved.problem.key: solved.answer for solved in self.drawn(task, seed)}
        return {
            "answers": [(trace.statement, answers[trace.key]) for trace in traces],
            "verified": [(trace.statement, trace.text) for trace in traces],
        }

    def lengths(self, readings: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, tuple[int, int]]:
        """Steps of each arm, and tokens of prompts and completions that go through the student in them."""
        steps, batch_size = self.recipe.steps, self.recipe.batch_size
        a_step = {
            arm: sum(map(len, tokenize(self.tokenizer, texts))) / math.ceil(len(texts) / batch_size)
            for arm, texts in readings.items()
        }
        taken = {arm: max(1, round(steps * a_step["verified"] / tokens)) for arm, tokens in a_step.items()}
        return {arm: (taken[arm], round(taken[arm] * tokens)) for arm, tokens in a_step.items()}

    def run(self, arm: str, task: str, seed: int, lr: float, *, test: bool = True) -> dict:
        """Teach one student and examine it, once, on test and all else or on validation."""

        def run() -> dict:
            student, recipe, readings = self.start(), self.recipe, self.readings(task, seed)
            steps, tokens = self.lengths(readings)[arm]
            history = distill_language_model(
                student, self.tokenizer, readings[arm], steps=steps, lr=lr, seed=seed,
                batch_size=recipe.batch_size, adam_beta2=recipe.adam_beta2, precision=recipe.precision,
                progress=self.progress,
            )
            found = {"arm": arm, "task": task, "seed": seed, "lr": lr, "steps": steps, "tokens": tokens,
                     "learned": history.tokens_trained, "seconds": history.seconds}  # fmt: skip
            student = self.cast(student)
            return found | (self.examined(student, task) if test else self._validated(student, arm, task))

        return self.once([arm, task, seed, lr, test], run)

    def _validated(self, student: PreTrainedModel, arm: str, task: str) -> dict[str, float]:
        """Right answers, and the NLL of what the arm should have written, to choose a learning rate by."""
        texts = [
            (solved.problem.statement, solved.trace if arm == "verified" else solved.answer)
            for solved in self.tasks[task].validation
        ]
        right = self.asked(student, {task: "validation"})[task]["accuracy"]
        scores = score_texts(student, self.tokenizer, texts)
        return {"validation": right, "validation_nll": scores.mean("nll")}

    def examined(self, model: PreTrainedModel, task: str | None = None, **how) -> dict:
        """Its own task within and beyond the range, the others, and English; without a task of all both."""
        recipe = self.recipe
        own = recipe.tasks if task is None else (task,)
        parts = dict.fromkeys(self.tasks, "test") | {f"{name} beyond": "beyond" for name in own}
        found = self.asked(model, parts, whole=own, **how)
        scores = score_texts(model, self.tokenizer, self.english)
        return {"tasks": found, "nll": scores.mean("nll"), "nll_by_text": scores.by_text("nll")}

    def asked(
        self, model: PreTrainedModel, parts: Mapping[str, str], *, whole: Sequence[str] = (),
        max_new_tokens: int | None = None,
    ) -> dict[str, dict]:
        """Its likeliest answers to parts of tasks; of tasks not in `whole` to the first of test."""
        problems = {}
        for name, part in parts.items():
            task = self.tasks[name.split()[0]]
            count = self.recipe.other if part == "test" and task.name not in whole else None
            problems[name] = [solved.problem for solved in getattr(task, part)[:count]]
        traces = iter(collect_traces(
            model, self.tokenizer, [problem for some in problems.values() for problem in some], samples=1,
            temperature=0.0, max_new_tokens=max_new_tokens or self.recipe.max_new_tokens,
            progress=self.progress,
        ))  # fmt: skip
        return {
            name: _scored([next(traces) for _ in some], self.tasks[name.split()[0]].verify)
            for name, some in problems.items()
        }

    def before(self) -> dict:
        """The model as it is, asked everything."""
        how = {"max_new_tokens": self.recipe.before_tokens}
        return self.once([BEFORE], lambda: self.examined(self.cast(self.start()), **how))

    def tried(self) -> list[dict]:
        """Each arm with each learning rate, on validation, for the first task."""
        return [self._tried(arm, lr) for arm in ARMS for lr in self.recipe.lrs]

    def _tried(self, arm: str, lr: float) -> dict:
        return self.run(arm, self.recipe.tasks[0], 0, lr, test=False)

    def chosen(self, arm: str) -> float:
        """The learning rate of the most right answers on validation; of equal ones that of the lowest NLL."""
        tried = [self._tried(arm, lr) for lr in self.recipe.lrs]
        return max(tried, key=lambda run: (run["validation"], -run["validation_nll"]))["lr"]

    def results(self, seeds: Sequence[int]) -> dict[str, object]:
        """Do what has not been done yet, and put everything together."""
        before, choices, learned = self.before(), self.tried(), {}
        for task in self.recipe.tasks:
            runs = [self.run(arm, task, seed, self.chosen(arm)) for seed in seeds for arm in ARMS]
            arms = by_arm(runs, LEFT_OUT)
            learned[task] = {
                "kept": [len(self.traces(task, seed)) for seed in seeds],
                "arms": arms, "verdicts": _verdicts(task, arms, before, len(seeds)),
            }
        return {
            **self.described(seeds),
            "texts": {"tokens": sum(len(piece.completion) for piece in self.english),
                      "fingerprint": fingerprint([[*p.prompt, *p.completion] for p in self.english])},
            BEFORE: {name: value for name, value in before.items() if name != "key"},
            "choices": [{k: v for k, v in run.items() if k not in ("key", "seconds")} for run in choices],
            "learned": learned,
        }  # fmt: skip


def _scored(traces: Sequence[Trace], verify: Callable[[Trace], bool]) -> dict[str, object]:
    """Shares of right answers, by the verifier that decides, by ours, and read loosely; tokens an answer."""
    right, count = [verify(trace) for trace in traces], len(traces)
    return {
        "accuracy": sum(right) / count, "correct": pack_bits(right),
        "ours": sum(trace.correct for trace in traces) / count,
        "loosely": sum(read_loosely(trace.text, trace.answer) for trace in traces) / count,
        "answer_tokens": sum(trace.tokens for trace in traces) / count,
        "truncated": sum(not trace.finished for trace in traces) / count,
    }


def _verdicts(task: str, arms: Mapping[str, Mapping], before: Mapping, seeds: int) -> dict[str, dict]:
    """Of one task: within the range, beyond it, and on English, over seeds and test problems together.

    The model before is the same for every seed.
    """
    asked = {arm: column["tasks"] for arm, column in arms.items()} | {BEFORE: [before["tasks"]] * seeds}
    english = {arm: column["nll_by_text"] for arm, column in arms.items()}
    english[BEFORE] = [before["nll_by_text"]] * seeds
    found = {
        measure: verdicts({arm: columns([run[name] for run in runs]) for arm, runs in asked.items()}, PAIRS)
        for measure, name in (("within", task), ("beyond", f"{task} beyond"))
    }
    nats = {arm: {"nll": [torch.tensor(values) for values in runs]} for arm, runs in english.items()}
    return found | {"english": verdicts(nats, PAIRS, loss="nll")}


def report(results: Mapping) -> str:
    """What the study found, as text: tables and verdicts."""
    before, recipe = results[BEFORE], results["recipe"]
    lines = [f"{results['seeds']} seeds; each student learns from {recipe['problems']} problems of one task"]
    head = f"{'':10}{'right (%)':>14}{'beyond':>8}{'ours':>7}{'loosely':>9}{'tokens':>8}{'cut off':>9}"
    for task, found in results["learned"].items():
        lines += ["", task, head + f"{'NLL':>8}{'steps':>7}{'lr':>8}"]
        rows = {BEFORE: {"tasks": [before["tasks"]], "nll": [before["nll"]]}, **found["arms"]}
        for arm, column in rows.items():
            own = columns([run[task] for run in column["tasks"]])
            beyond = columns([run[f"{task} beyond"] for run in column["tasks"]])
            ours, loosely, cut = (100 * _mean(own[name]) for name in ("ours", "loosely", "truncated"))
            line = (
                f"{arm:10}{_percent(own['accuracy']):>14}{100 * _mean(beyond['accuracy']):8.1f}{ours:7.1f}"
                f"{loosely:9.1f}{_mean(own['answer_tokens']):8.1f}{cut:9.1f}{_mean(column['nll']):8.3f}"
            )
            rest = f"{column['steps'][0]:7}{column['lr'][0]:8.0e}" if "lr" in column else ""
            lines.append(line + rest)
        lines += ["", "right on other tasks (%)"]
        for name in (name for name in before["tasks"] if name != task and not name.endswith(" beyond")):
            first = [
                f"{arm} {100 * _mean([_first(run[name], recipe['other']) for run in column['tasks']]):.1f}"
                for arm, column in rows.items()
            ]
            lines.append(f"{name:18}{', '.join(first)}")
        for measure, table in found["verdicts"].items():
            lines += [f"\n{measure.upper()}, {pair}\n{verdict['text']}" for pair, verdict in table.items()]
    return "\n".join(lines)


def _first(found: Mapping, count: int) -> float:
    """The share of right answers to the first so many problems, which every student was asked."""
    return unpack_bits(*found["correct"])[:count].float().mean().item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"
