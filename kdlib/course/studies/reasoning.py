"""Reasoning distillation in full: what are a teacher's texts worth, with error bars?

The arms of `kdlib.course.studies.reasoning_arms` on chains of two cages; a teacher made worse on purpose; and
four ways to go on for a student that has read traces for a while: more of them, the teacher's logits on
them, its own texts, judged by the teacher, or half and half. All arms read as many tokens in training.

Learning rates are chosen on validation. The test part is scored once for each finished student. Every
finished piece is on disk: an interrupted study goes on when it is started again.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.course.studies import reasoning_arms as ways
from kdlib.course.studies.pretraining_data import Text, pretraining_data
from kdlib.course.studies.records import by_arm, columns, once, pack_bits, verdicts
from kdlib.language.distill.batches import collate, tokenize_prompts
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.forward import predictions
from kdlib.language.models.small import load_model, tiny_model, without_bars
from kdlib.language.puzzles.make import PuzzleSplits
from kdlib.language.puzzles.puzzle import Puzzle
from kdlib.language.puzzles.text import problem, statement, written_solution
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces.collect import Trace, collect_traces
from kdlib.language.traces.select import majority_vote, pass_at_k
from kdlib.metrics import interval
from kdlib.runtime import best_device, describe_environment

STYLES = ("suppose", "equations")
TUNED = ("answers", "verified")
COMPARED = ("answers", "verified", "shortest")  # "unverified" where the teacher is often wrong
LEARNING_RATES = (5e-3, 8e-3, 1.2e-2, 1.8e-2)
FURTHER_RATES = (1e-3, 3e-3, 8e-3, 1.2e-2)
CHOICE_SEEDS = 1
WEAK = 0.3  # share of its training that the worse teacher has had
# What a student does that has read the traces for a share of the usual steps.
HANDOVERS = {0.25: ("verified", "on-policy"), 0.5: tuple(ways.FURTHER)}
VOTES = (1, 2, 4, 8, 16, 32)
LEFT_OUT = ("key", "arm", "seed", "seconds")  # of runs, in what is kept

# What asks one question each: an arm, and what it is measured against.
PAIRS = {
    "compute": (
        ("verified", "answers"), ("shortest", "verified"),
    ),
    "weak": (("verified", "unverified"),),
    "further": tuple(
        (f"{way} after {share:g}", f"verified after {share:g}")
        for share, further in HANDOVERS.items() for way in further if way != "verified"
    ),
}


@dataclass(frozen=True)
class ReasoningStudy:
    """The study with one recipe, resumable from its folder of models, traces and finished runs."""

    folder: Path
    recipe: ways.ReasoningRecipe = ways.CHAINS
    problems: int = 200  # that each student learns from
    progress: bool = False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return puzzle_tokenizer()

    @cached_property
    def chains(self) -> PuzzleSplits:
        return self.recipe.chains()

    def teacher(self, share: float = 1.0) -> PreTrainedModel:
        """The reasoner: a larger base model that has read chains, solved by a program in both styles.

        With a share of its steps on chains below 1 it is a teacher made worse on purpose.
        """
        recipe, seed = self.recipe, 1000

        def start() -> tuple[PreTrainedModel, list[Text]]:
            size = recipe.teacher_width, recipe.teacher_family
            base = self._base("teacher-base", *size, recipe.teacher_pretraining, seed)
            chains = enumerate(self.chains.train)
            return base, [(statement(chain), written_solution(chain, STYLES[n % 2])) for n, chain in chains]

        stage = replace(recipe.teacher, steps=max(1, round(share * recipe.teacher.steps)))
        name = "teacher" if share == 1 else f"teacher-{share:g}"
        return self._trained(name, start, stage, seed).to(best_device())

    def base(self, seed: int) -> PreTrainedModel:
        """A base model of the student's size, as every arm of this seed begins."""
        size = self.recipe.student_width, self.recipe.student_family
        return self._base(f"base-{seed}", *size, self.recipe.student_pretraining, seed)

    def _base(self, name: str, width: int, family: str, stage: ways.Stage, seed: int) -> PreTrainedModel:
        def start() -> tuple[PreTrainedModel, list[Text]]:
            read = {"heads": self.recipe.heads, "animals": self.recipe.animals}
            return self._untrained(width, family, seed), pretraining_data(self.recipe.cages(), **read)

        return self._trained(name, start, stage, seed)

    def _untrained(self, width: int, family: str, seed: int) -> PreTrainedModel:
        return tiny_model(self.tokenizer, width=width, layers=self.recipe.layers, family=family, seed=seed)

    def _trained(self, name: str, start: Callable, stage: ways.Stage, seed: int) -> PreTrainedModel:
        """The model in the folder of this name; at first, the one that `start` returns, trained on the texts
        that it returns. A killed training goes on.
        """
        folder = self.folder / name
        with FileLock(self.folder / f".{name}.made"), without_bars():  # other processes wait for it
            if not (folder / "finished").exists():
                model, texts = start()
                distill_language_model(
                    model, self.tokenizer, texts, folder, **asdict(stage), precision=self.recipe.precision,
                    adam_beta2=self.recipe.adam_beta2, seed=seed, progress=self.progress,
                )
                (folder / "finished").touch()
            return load_model(folder)

    def drawn(self, seed: int, count: int | None = None) -> list[Puzzle]:
        """The problems of a seed; fewer are the first of more."""
        pool, count = self.chains.train, self.problems if count is None else count
        if not 1 <= count <= len(pool):
            raise ValueError(f"count (problems) must be 1 to {len(pool)}, the recipe's pool; got {count}")
        return random.Random(f"{seed} problems").sample(pool, len(pool))[:count]

    def traces(self, seed: int, count: int | None = None, share: float = 1.0) -> list[Trace]:
        """What the teacher writes on the problems of a seed."""
        name = f"traces-{seed}-{share:g}.jsonl"
        with FileLock(self.folder / f".{name}.made"):
            return collect_traces(
                self.teacher(share), self.tokenizer, [problem(p) for p in self.drawn(seed, count)],
                self.folder / name, samples=self.recipe.samples, seed=seed, progress=self.progress,
                max_new_tokens=self.recipe.max_new_tokens,
            )

    def student(self, arm: str, seed: int, **options) -> PreTrainedModel:
        """The student of a finished run."""
        return load_model(self.folder / "students" / _name(arm, seed, options)).to(best_device())

    def run(self, arm: str, seed: int, *, test: bool = True, **options) -> dict:
        """Teach one student and examine it, once, on test and beyond or on validation.

        Options are budget, "compute" or "steps"; count of problems; share of the teacher's training; lr;
        read, the share of its steps that "verified" takes; after, with a way of `FURTHER` as arm: how it goes
        on once it has read for this share.
        """
        name = _name(arm, seed, options)

        def run() -> dict:
            teach = self._further if "after" in options else self._taught
            student, figures = teach(arm, seed, **options)
            with without_bars():
                student.save_pretrained(self.folder / "students" / name)
            self.tokenizer.save_pretrained(self.folder / "students" / name)
            return {"arm": arm, "seed": seed, **figures, **self.examine(student, test=test)}

        return once(self.folder / "runs.jsonl", [name, test], run)

    def handed_over(self, seed: int, share: float) -> dict:
        """The run of "verified" that a student goes on from: its usual one, or a share of its steps."""
        return self.run("verified", seed, **({} if share == 1 else {"read": share}))

    def _further(
        self, way: str, seed: int, *, after: float, lr: float | None = None
    ) -> tuple[PreTrainedModel, dict]:
        begun = self.handed_over(seed, after)
        student = load_model(self.folder / "students" / begun["key"][0])
        texts = ways.reading("verified", self.drawn(seed), self.traces(seed))
        figures = ways.teach_further(self.recipe, student, self.tokenizer, way, texts, teacher=self.teacher(),
                                     lr=lr, seed=seed, progress=self.progress)
        return student, figures

    def _taught(
        self, arm: str, seed: int, *, budget: Literal["steps", "compute"] = "compute",
        count: int | None = None, share: float = 1.0, lr: float | None = None, read: float = 1.0,
    ) -> tuple[PreTrainedModel, dict]:
        if budget not in ("steps", "compute"):
            raise ValueError(f'budget must be "steps" or "compute"; got {budget!r}')
        traces, drawn, student = self.traces(seed, count, share), self.drawn(seed, count), self.base(seed)
        tokens, stage = None, self.recipe.student
        if budget == "compute":  # what "verified" reads in its steps
            verified = ways.reading("verified", drawn, traces)
            tokens = read * stage.steps * ways.tokens_a_step(self.tokenizer, verified, stage.batch_size)
        figures = ways.teach_student(
            self.recipe, student, self.tokenizer, arm, ways.reading(arm, drawn, traces), tokens=tokens, lr=lr,
            seed=seed, progress=self.progress,
        )
        return student, figures

    def runs(
        self, arms: Sequence[str], seeds: Sequence[int], *, workers: int | None = None, **options
    ) -> dict[str, list[dict]]:
        """`run` for every arm and seed with the same options, by arm in the order of the seeds.

        Workers are processes of one thread each, which suits small models: one a core, or one on a GPU.
        """
        self.prepare(seeds, workers=workers)
        jobs = [delayed(self.run)(arm, seed, **options) for seed in seeds for arm in arms]
        return _by_arm(self._shared(jobs, workers, "students"))

    def prepare(self, seeds: Sequence[int], *, workers: int | None = None) -> None:
        """Make the teacher, the base models of the seeds, and their traces."""
        models = [delayed(self.teacher)(), *(delayed(self.base)(seed) for seed in seeds)]
        self._shared(models, workers, "models")
        self._shared([delayed(self.traces)(seed) for seed in seeds], workers, "traces")

    def _shared(self, jobs: Sequence[tuple], workers: int | None, what: str) -> list:
        """The results of joblib's `delayed` calls, in order; in this process if one is enough."""
        workers = workers or (cpu_count() if best_device().type == "cpu" else 1)
        with parallel_config("loky", inner_max_num_threads=1):
            done = Parallel(max(1, min(workers, len(jobs))), return_as="generator")(jobs)
            return list(tqdm(done, desc=what, total=len(jobs), disable=not self.progress))

    def examine(self, model: PreTrainedModel, *, test: bool = True) -> dict:
        """Greedy answers: on validation, or on test and beyond."""
        if not test:
            return {"validation": _accuracy(self.answers(model, self.chains.validation))}
        test, beyond = self.chains.test, self.chains.beyond
        answers = self.answers(model, [*test, *beyond])  # one batch: a step of many texts costs hardly more
        answers, beyond = answers[: len(test)], answers[len(test) :]
        styles = [ways.style_of(trace.text) for trace in answers]
        return {
            **_scored(answers),
            "beyond": _accuracy(beyond),
            "answer_tokens": sum(trace.tokens for trace in answers) / len(answers),
            "malformed": sum(not trace.well_formed for trace in answers) / len(answers),
            "truncated": sum(not trace.finished for trace in answers) / len(answers),
            **{style: styles.count(style) / len(styles) for style in STYLES},
            "begins_suppose": self._begins_suppose(model),
        }

    @torch.no_grad()
    def _begins_suppose(self, model: PreTrainedModel) -> float:
        """The mean probability of "Suppose" as the first word on test: the share of that style if sampled."""
        first = self.tokenizer.convert_tokens_to_ids("Suppose")
        prompts = tokenize_prompts(self.tokenizer, [statement(puzzle) for puzzle in self.chains.test])
        batch = collate([replace(p, completion=(first,)) for p in prompts], self.tokenizer.pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        return float(predictions(model, batch).softmax(-1)[:, first].mean())

    def answers(
        self, model: PreTrainedModel, puzzles: Sequence[Puzzle], *, samples: int = 1, temperature: float = 0.0
    ) -> list[Trace]:
        """The most probable answer to each puzzle, or several sampled ones."""
        return collect_traces(
            model, self.tokenizer, [problem(p) for p in puzzles], samples=samples, temperature=temperature,
            max_new_tokens=self.recipe.max_new_tokens, batch_size=512, progress=self.progress,
        )

    def votes(self, arm: str, seed: int, temperature: float) -> dict[str, list[float]]:
        """pass@k and majority vote of a finished student, for the k of `VOTES`."""

        def run() -> dict:
            traces = self.answers(self.student(arm, seed), self.chains.test, samples=max(VOTES),
                                  temperature=temperature)
            return {"k": list(VOTES), "pass": [pass_at_k(traces, k) for k in VOTES],
                    "majority": [majority_vote(traces, k) for k in VOTES],
                    "tokens": sum(trace.tokens for trace in traces) / len(traces)}

        return once(self.folder / "runs.jsonl", ["votes", arm, seed, temperature], run)

    def jobs(self, seeds: Sequence[int]) -> dict[str, list[tuple]]:
        """All of the study, by part: the `delayed` calls."""
        run, few = delayed(self.run), seeds[:CHOICE_SEEDS]
        tried = [(arm, {"lr": lr}) for lr in LEARNING_RATES for arm in TUNED]
        handed = [delayed(self.handed_over)(s, share) for share in HANDOVERS for s in seeds]
        rates = [(way, {"after": 0.5, "lr": lr}) for lr in FURTHER_RATES for way in ("verified", "on-policy")]
        return {
            "choices": [run(arm, s, test=False, **given) for s in few for arm, given in tried],
            "compute": [run(arm, s) for s in seeds for arm in COMPARED],
            "handed over": handed,
            "rates": [run(way, s, test=False, **given) for s in few for way, given in rates],
            **{f"after {share:g}": [run(way, s, after=share) for s in seeds for way in further]
               for share, further in HANDOVERS.items()},
            "weak": [run(arm, s, share=WEAK) for s in seeds for arm in ("unverified", "verified")],
        }

    def results(self, seeds: Sequence[int], *, workers: int | None = None) -> dict[str, object]:
        """Do what has not been done yet, and put everything together."""
        self.prepare(seeds, workers=workers)
        done = {part: self._shared(jobs, workers, part) for part, jobs in self.jobs(seeds).items()}
        choices = done.pop("choices") + done.pop("rates")
        handed = done.pop("handed over")
        by = {part: by_arm(runs, LEFT_OUT) for part, runs in done.items()}
        teachers = {share: self.teacher(share) for share in (1.0, WEAK)}
        traces, weak_traces = (
            [trace for seed in seeds for trace in self.traces(seed, share=share)]
            for share in (1.0, WEAK)
        )
        further = {
            f"{share:g}": {"start": columns(handed[n * len(seeds) : (n + 1) * len(seeds)], LEFT_OUT),
                           **by.pop(f"after {share:g}")}
            for n, share in enumerate(HANDOVERS)
        }
        by["further"] = _by_name(further)
        return {
            "environment": describe_environment(),
            "recipe": asdict(self.recipe),
            "problems": self.problems,
            "seeds": len(seeds),
            "parts": {name: len(part) for name, part in vars(self.chains).items()},
            "teacher": self.examine(teachers[1.0]) | {
                "parameters": teachers[1.0].num_parameters(),
                "written": round(sum(trace.tokens for trace in traces) / len(seeds)),
            },
            "student": {"parameters": self.base(seeds[0]).num_parameters()},
            "choices": [{k: v for k, v in run.items() if k != "seconds"} for run in choices],
            "arms": {"compute": by["compute"]},
            "further": further,
            "weak": {"teacher": self.examine(teachers[WEAK]), "pass_rate": _accuracy(weak_traces),
                     "arms": by["weak"]},
            "verdicts": {part: verdicts(by[part], pairs) for part, pairs in PAIRS.items()},
        }


def report(results: Mapping) -> str:
    """What the study found, as text: tables and verdicts."""
    teacher, weak = results["teacher"], results["weak"]
    lines = [
        f"teacher: {teacher['parameters']:,} parameters, {100 * teacher['accuracy']:.1f} % on test, "
        f"{100 * teacher['beyond']:.1f} % beyond its range",
        f"student: {results['student']['parameters']:,} parameters, {results['problems']} problems, "
        f"{results['seeds']} seeds",
        "", "on validation, each setting and seed",
        *(f"{run['key'][0]:36}{100 * run['validation']:6.1f} %" for run in results["choices"]),
    ]

    def tables(title: str, part: str, arms: Mapping[str, Mapping[str, Sequence]]) -> None:
        head = f"{'':24}{'accuracy (%)':>15}{'beyond (%)':>12}{'tokens':>9}{'suppose (%)':>13}{'steps':>7}"
        lines.extend(("", title, head))
        for arm, column in arms.items():
            beyond, tokens, suppose = (
                f"{scale * sum(column[name]) / len(column[name]):.1f}"
                for name, scale in (("beyond", 100), ("answer_tokens", 1), ("suppose", 100))
            )
            accuracy, steps = _percent(column["accuracy"]), column["steps"][0]
            lines.append(f"{arm:24}{accuracy:>15}{beyond:>12}{tokens:>9}{suppose:>13}{steps:>7}")
        lines.extend(f"\n{pair}\n{verdict['text']}" for pair, verdict in results["verdicts"][part].items())

    for budget, arms in results["arms"].items():
        tables(f"equal {budget}", budget, arms)
    tables(f"a worse teacher, {100 * weak['teacher']['accuracy']:.1f} %; "
           f"{100 * weak['pass_rate']:.1f} % of its traces are right", "weak", weak["arms"])
    tables("going on after a share of the steps on traces", "further", _by_name(results["further"]))
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def _name(arm: str, seed: int, options: dict) -> str:
    return "-".join([arm, str(seed), *(f"{option}={value}" for option, value in sorted(options.items()))])


def _by_name(further: Mapping[str, Mapping[str, Mapping]]) -> dict[str, Mapping]:
    """The ways to go on after each share, by names such as "on-policy after 0.5"."""
    return {f"{way} after {share}": found for share, ways in further.items() for way, found in ways.items()}


def _by_arm(runs: Sequence[dict]) -> dict[str, list[dict]]:
    names = dict.fromkeys(run["arm"] for run in runs)
    return {arm: [run for run in runs if run["arm"] == arm] for arm in names}


def _accuracy(traces: Sequence[Trace]) -> float:
    return sum(trace.correct for trace in traces) / len(traces)


def _scored(answers: Sequence[Trace]) -> dict:
    return {"accuracy": _accuracy(answers), "correct": pack_bits(trace.correct for trace in answers)}
