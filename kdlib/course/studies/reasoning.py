"""Reasoning distillation in full: what are a teacher's texts worth, with error bars?

    python -m kdlib reasoning --seeds 5 --out data/results/reasoning.json

Chains of two cages, which need steps. A teacher, a base model of the student's size for each seed, and the
arms of `kdlib.course.studies.reasoning_arms`, each at two budgets; then the number of problems, a teacher made worse on
purpose, samples of the student that learnt answers only, and the easy puzzle, where steps are not needed.

Learning rates and (T, α) are chosen on validation. The test part is scored once for each finished student.
Every finished piece is on disk: whoever is interrupted starts the command again. Processes share the work,
one for each core.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock
from joblib import Parallel, delayed
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from kdlib.course.studies.reasoning_arms import (
    ARMS,
    CHAINS,
    Budget,
    Recipe,
    Stage,
    reading,
    style_of,
    teach_student,
    tokens_a_step,
    train_base,
    train_teacher,
)
from kdlib.course.studies.reasoning_results import PAIRS, columns, report, verdicts
from kdlib.course.studies.records import RunLog, pack, write_results
from kdlib.language.models.small import load_model, tiny_model, without_bars
from kdlib.language.puzzles.make import PuzzleSplits, puzzle_splits
from kdlib.language.puzzles.puzzle import Puzzle
from kdlib.language.puzzles.text import problem, statement, written_solution
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces.collect import Trace, collect_traces
from kdlib.language.traces.select import majority_vote, pass_at_k
from kdlib.runtime import best_device, describe_environment
from kdlib.storage import fingerprint

__all__ = ["Study", "main"]

TUNED = ("answers", "verified")
OTHER_LENGTH = ("answers", "shortest")  # arms whose number of steps depends on the budget
LEARNING_RATES = (2.5e-3, 5e-3, 8e-3)
SOFT = ((1.0, 0.5), (2.0, 0.5), (4.0, 0.5))  # (T, α)
CHOICE_SEEDS = 2
COUNTS = (50, 800)  # of problems, besides the usual one
WEAK = 0.5  # share of its training that the worse teacher has had
VOTES = (1, 2, 4, 8, 16, 32)
VOTE_TEMPERATURE = 1.0
EASY = Stage(600, 5e-3)


@dataclass(frozen=True)
class Study:
    """One experiment, resumable from its folder.

    Attributes:
        folder: where models, traces and finished runs are kept.
        recipe: puzzles, models and their training.
        problems: how many each student learns from.
        progress: show progress bars.
    """

    folder: Path
    recipe: Recipe = CHAINS
    problems: int = 200
    progress: bool = False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return puzzle_tokenizer()

    @cached_property
    def chains(self) -> PuzzleSplits:
        return self.recipe.chains()

    def teacher(self, share: float = 1.0) -> PreTrainedModel:
        """The teacher, or one that stopped after a share of its training on chains."""
        folder = self.folder / ("teacher" if share == 1 else f"teacher-{share:g}")
        with self._alone("teacher"):  # whatever the share, its base model is the same
            model = train_teacher(
                self.recipe, self.tokenizer, folder, self.chains.train, share=share, progress=self.progress
            )
        return model.to(best_device())

    def base(self, seed: int) -> PreTrainedModel:
        """A base model of the student's size, as every arm of this seed begins."""
        with self._alone(f"base-{seed}"):
            return train_base(
                self.recipe, self.tokenizer, self.folder / f"base-{seed}", seed=seed, progress=self.progress
            )

    def drawn(self, seed: int, count: int | None = None) -> list[Puzzle]:
        """The problems of a seed; fewer are the first of more.

        Raises:
            ValueError: more than there are.
        """
        count = self.problems if count is None else count
        if not 1 <= count <= len(self.chains.train):
            raise ValueError(
                f"count (problems) must be 1 to {len(self.chains.train)}, the recipe's pool; got {count}"
            )
        order = random.Random(f"{seed} problems").sample(self.chains.train, len(self.chains.train))
        return order[:count]

    def traces(self, seed: int, count: int | None = None, share: float = 1.0) -> list[Trace]:
        """What the teacher writes on the problems of a seed."""
        name = f"traces-{seed}-{share:g}.jsonl"
        with self._alone(name):
            return collect_traces(
                self.teacher(share), self.tokenizer, [problem(p) for p in self.drawn(seed, count)],
                self.folder / name, samples=self.recipe.samples, seed=seed, progress=self.progress,
                max_new_tokens=self.recipe.max_new_tokens,
            )  # fmt: skip

    def student(self, arm: str, seed: int, **options) -> PreTrainedModel:
        """The student of a finished run."""
        return load_model(self._place(arm, seed, **options)).to(best_device())

    def run(self, arm: str, seed: int, *, test: bool = True, **options) -> dict:
        """Teach one student and examine it, once; its figures are kept.

        Args:
            arm: one of `kdlib.course.studies.reasoning_arms.ARMS`.
            test: score the test part and what lies beyond; without it, validation only.
            options: budget, "compute" (default) or "steps"; count of problems; share, of the teacher's
                training; lr; temperature and alpha of "logits".
        """
        place = self._place(arm, seed, **options)
        key = [place.name, test]
        if (done := self._log.find(key)) is None:
            student, figures = self._taught(arm, seed, **options)
            with without_bars():
                student.save_pretrained(place)
            self.tokenizer.save_pretrained(place)
            done = {"key": key, "arm": arm, "seed": seed, **figures, **self.examine(student, test=test)}
            self._log.append(done)
        return done

    def runs(
        self, arms: Sequence[str], seeds: Sequence[int], *, workers: int | None = None, **options
    ) -> dict[str, list[dict]]:
        """`run` for every arm and seed, by arm in the order of the seeds.

        On a CPU the runs are shared among processes with one thread each, which such small models use better
        than one process uses two; on a GPU they come one after the other.

        Args:
            workers: processes; default one for each core, one on a GPU.
            options: as for `run`, the same for all.
        """
        self.prepare(seeds, workers=workers)
        jobs = [("run", (arm, seed), options) for seed in seeds for arm in arms]
        done = self._shared(self._piece, jobs, workers, "students")
        return {arm: [run for run in done if run["arm"] == arm] for arm in arms}

    def prepare(self, seeds: Sequence[int], *, workers: int | None = None) -> None:
        """Make the teacher, the base models of the seeds, and their traces."""
        self._shared(self._make, [("teacher", 0), *(("base", seed) for seed in seeds)], workers, "models")
        self._shared(self._make, [("traces", seed) for seed in seeds], workers, "traces")

    def _piece(self, method: str, arguments: Sequence, options: Mapping) -> object:
        return getattr(self, method)(*arguments, **options)

    def _make(self, kind: str, seed: int) -> None:
        """A piece that is on disk afterwards."""
        self.teacher() if kind == "teacher" else getattr(self, kind)(seed)

    def _shared(self, make: Callable, jobs: Sequence[tuple], workers: int | None, what: str) -> list:
        workers = workers or (os.cpu_count() or 1 if best_device().type == "cpu" else 1)
        workers = max(1, min(workers, len(jobs)))
        results = (
            (make(*job) for job in jobs)
            if workers == 1
            else Parallel(workers, return_as="generator")(delayed(_on_one_thread)(make, *job) for job in jobs)
        )
        return list(tqdm(results, desc=what, total=len(jobs), disable=not self.progress))

    def _taught(
        self,
        arm: str,
        seed: int,
        *,
        budget: Budget = "compute",
        count: int | None = None,
        share: float = 1.0,
        lr: float | None = None,
        temperature: float | None = None,
        alpha: float | None = None,
    ) -> tuple[PreTrainedModel, dict]:
        soft = {"temperature": temperature, "alpha": alpha}
        recipe = replace(self.recipe, **{name: value for name, value in soft.items() if value is not None})
        traces = self.traces(seed, count, share)
        drawn = self.drawn(seed, count)
        student = self.base(seed)
        # The budget of all arms is what "verified" reads in its steps.
        stage = recipe.student
        tokens = stage.steps * tokens_a_step(
            self.tokenizer, reading("verified", drawn, traces), stage.batch_size
        )
        figures = teach_student(
            recipe, student, self.tokenizer, arm, reading(arm, drawn, traces), budget=budget,
            teacher=self.teacher(share) if arm in ("logits", "on-policy") else None, budget_tokens=tokens,
            lr=lr, seed=seed, progress=self.progress,
        )  # fmt: skip
        return student, figures

    def examine(self, model: PreTrainedModel, *, test: bool = True) -> dict:
        """Greedy answers: on validation, or on test and beyond."""
        if not test:
            return {"validation": self._accuracy(self.answers(model, self.chains.validation))}
        answers = self.answers(model, self.chains.test)
        styles = [style_of(trace.text) for trace in answers]
        return {
            "accuracy": self._accuracy(answers),
            "correct": pack(torch.tensor([trace.correct for trace in answers])),
            "beyond": self._accuracy(self.answers(model, self.chains.beyond)),
            "answer_tokens": sum(trace.tokens for trace in answers) / len(answers),
            "malformed": sum(not trace.well_formed for trace in answers) / len(answers),
            "truncated": sum(not trace.finished for trace in answers) / len(answers),
            "suppose": styles.count("suppose") / len(styles),
            "equations": styles.count("equations") / len(styles),
        }

    def answers(self, model: PreTrainedModel, puzzles: Sequence[Puzzle]) -> list[Trace]:
        """The most probable answer to each puzzle."""
        return self.sampled(model, puzzles, samples=1, temperature=0.0)

    def sampled(
        self, model: PreTrainedModel, puzzles: Sequence[Puzzle], *, samples: int, temperature: float
    ) -> list[Trace]:
        """Several answers to each puzzle, without a file."""
        return collect_traces(
            model, self.tokenizer, [problem(p) for p in puzzles], samples=samples, temperature=temperature,
            max_new_tokens=self.recipe.max_new_tokens, batch_size=512, progress=self.progress,
        )  # fmt: skip

    def easy(self, arm: str, seed: int) -> dict:
        """The article's puzzle, chickens and rabbits in one cage: students from nothing, equal compute.

        They read solutions that a program wrote ("suppose"), or the answers alone ("answers").
        """
        key = ["easy", arm, seed]
        if (done := self._log.find(key)) is None:
            puzzles = puzzle_splits("pair", train=300, validation=0, test=100, heads=(2, 30), seed=0,
                                    animals=("chickens", "rabbits"))  # fmt: skip
            read = {
                name: [(statement(p), written_solution(p, think=name == "suppose")) for p in puzzles.train]
                for name in ("suppose", "answers")
            }
            recipe = replace(self.recipe, student=EASY, answers_lr=EASY.lr)
            student = tiny_model(self.tokenizer, width=recipe.student_width, layers=recipe.layers, seed=seed)
            tokens = EASY.steps * tokens_a_step(self.tokenizer, read["suppose"], EASY.batch_size)
            figures = teach_student(recipe, student, self.tokenizer, arm, read[arm], budget="compute",
                                    budget_tokens=tokens, seed=seed, progress=self.progress)  # fmt: skip
            answers = self.answers(student, puzzles.test)
            done = {"key": key, "arm": arm, **figures, "accuracy": self._accuracy(answers),
                    "correct": pack(torch.tensor([trace.correct for trace in answers]))}  # fmt: skip
            self._log.append(done)
        return done

    def votes(self, arm: str, seed: int, temperature: float) -> dict[str, list[float]]:
        """pass@k and majority vote of a finished student, for the k of `VOTES`."""
        key = ["votes", arm, seed, temperature]
        if (done := self._log.find(key)) is None:
            traces = self.sampled(self.student(arm, seed), self.chains.test, samples=max(VOTES),
                                  temperature=temperature)  # fmt: skip
            done = {"key": key, "k": list(VOTES), "pass": [pass_at_k(traces, k) for k in VOTES],
                    "majority": [majority_vote(traces, k) for k in VOTES],
                    "tokens": sum(trace.tokens for trace in traces) / len(traces)}  # fmt: skip
            self._log.append(done)
        return done

    def jobs(self, seeds: Sequence[int]) -> dict[str, list[tuple[str, tuple, dict]]]:
        """All of the experiment, by part: (method, arguments, options) of each piece of work."""
        tried = [(arm, {"lr": lr}) for lr in LEARNING_RATES for arm in TUNED]
        tried += [("logits", {"temperature": t, "alpha": alpha}) for t, alpha in SOFT]
        few = seeds[:CHOICE_SEEDS]
        return {
            "choices": [("run", (arm, s), {"test": False, **given}) for s in few for arm, given in tried],
            "compute": [("run", (arm, s), {}) for s in seeds for arm in ARMS],
            "steps": [("run", (arm, s), {"budget": "steps"}) for s in seeds for arm in OTHER_LENGTH],
            "counts": [("run", (arm, s), {"count": n}) for s in seeds for n in COUNTS for arm in TUNED],
            "weak": [("run", (arm, s), {"share": WEAK}) for s in seeds for arm in ("unverified", "verified")],
            "easy": [("easy", (arm, s), {}) for s in seeds for arm in ("suppose", "answers")],
            "votes": [("votes", ("answers", s, VOTE_TEMPERATURE), {}) for s in seeds],
        }  # fmt: skip

    def results(self, seeds: Sequence[int], *, workers: int | None = None) -> dict[str, object]:
        """Do what has not been done yet, and put everything together."""
        jobs, done = self.jobs(seeds), {}
        for part, pieces in jobs.items():
            done[part] = self._shared(self._piece, pieces, workers, part)
            if part == "choices" and self.progress:
                self._show_choices(done[part])
        by = {part: _by_arm(done[part]) for part in ("compute", "steps", "weak", "easy")}
        compute = by["compute"]
        steps = {arm: by["steps"].get(arm, compute[arm]) for arm in ("answers", "verified", "shortest")}
        counts = {self.problems: {arm: compute[arm] for arm in TUNED}}
        for count in COUNTS:
            pairs = zip(jobs["counts"], done["counts"], strict=True)
            counts[count] = _by_arm(run for (_, _, given), run in pairs if given["count"] == count)
        teachers = {share: self.teacher(share) for share in (1.0, WEAK)}
        traces = [trace for seed in seeds for trace in self.traces(seed, share=WEAK)]
        arms = {"compute": compute, "steps": steps, "weak": by["weak"], "easy": by["easy"]}
        return {
            "environment": describe_environment(),
            "recipe": json.loads(json.dumps(asdict(self.recipe))),
            "problems": self.problems,
            "seeds": len(seeds),
            "parts": {name: len(part) for name, part in vars(self.chains).items()},
            "teacher": self.examine(teachers[1.0]) | {"parameters": teachers[1.0].num_parameters()},
            "student": {"parameters": self.base(seeds[0]).num_parameters()},
            "choices": [{k: v for k, v in run.items() if k not in ("seconds", "written")}
                        for run in done["choices"]],
            "arms": {"compute": compute, "steps": steps},
            "counts": {str(count): counts[count] for count in sorted(counts)},
            "weak": {"teacher": self.examine(teachers[WEAK]), "pass_rate": self._accuracy(traces),
                     "arms": by["weak"]},
            "easy": by["easy"],
            "votes": {"k": list(VOTES), **{name: [run[name] for run in done["votes"]]
                                           for name in ("pass", "majority", "tokens")}},
            "verdicts": {name: verdicts(arms[name], pairs) for name, pairs in PAIRS.items()},
        }  # fmt: skip

    def _show_choices(self, runs: Sequence[dict]) -> None:
        """What validation says of each setting; the recipe's defaults are what was best."""
        means: dict[str, list[float]] = {}
        for run in runs:
            means.setdefault(run["key"][0].replace(f"-{run['seed']}-", " ", 1), []).append(run["validation"])
        for setting, accuracies in means.items():
            print(f"{setting:28}{100 * sum(accuracies) / len(accuracies):6.1f} % on validation")

    @staticmethod
    def _accuracy(traces: Sequence[Trace]) -> float:
        return sum(trace.correct for trace in traces) / len(traces)

    def _place(self, arm: str, seed: int, **options) -> Path:
        said = "".join(f"-{name}={value}" for name, value in sorted(options.items()) if value is not None)
        return self.folder / "students" / f"{arm}-{seed}{said}"

    def _alone(self, name: str) -> FileLock:
        """While one process makes a piece, others wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f".{name}.made")

    @cached_property
    def _log(self) -> RunLog:
        return RunLog(self.folder / "runs.jsonl")


def _by_arm(runs: Iterable[dict]) -> dict[str, dict[str, list]]:
    """Columns of figures, in the order of the runs."""
    by: dict[str, list[dict]] = {}
    for run in runs:
        by.setdefault(run["arm"], []).append(run)
    return {arm: columns(found) for arm, found in by.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m kdlib reasoning`: run, print the report, write the results."""
    parser = argparse.ArgumentParser(prog="python -m kdlib reasoning", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="paired runs of each arm (%(default)s)")
    add("--problems", type=int, default=200, help="that each student learns from (%(default)s)")
    add("--student", choices=("qwen2", "llama"), default="qwen2", help="class of the students (%(default)s)")
    add("--workers", type=int, help="processes (default: one for each core; one on a GPU)")
    add("--work", type=Path, default=Path("data/cache/reasoning"),
        help="where models, traces and finished runs are kept (%(default)s)")
    add("--out", type=Path, help="write the results as JSON here")
    add("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(argv)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval needs at least 2")
    recipe = replace(CHAINS, student_family=given.student)
    identity = fingerprint(json.dumps(asdict(recipe)), given.problems)[:12]
    study = Study(given.work / identity, recipe, given.problems, progress=not given.quiet)
    print(study.chains)
    try:
        results = study.results(range(given.seeds), workers=given.workers)
    except (ValueError, OSError) as error:
        print(f"kdlib reasoning: {error}", file=sys.stderr)
        return 1
    if given.out is not None:
        write_results(given.out, results)
    print(report(results))
    return 0


def _on_one_thread(make: Callable, *job):
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    return make(*job)
