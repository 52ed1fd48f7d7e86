"""The smallest recipe whose teacher solves anything: it knows its eight chains by heart."""

from kdlib.course.studies.reasoning_arms import Recipe, Stage
from kdlib.language.puzzles.puzzle import Puzzle
from kdlib.language.puzzles.text import problem, written_solution
from kdlib.language.traces.collect import Trace

TINY = Recipe(
    animals=("chickens", "rabbits", "ants"), heads=(2, 5), beyond_heads=(6, 7), pool=8, validation=3, test=5,
    beyond=4, teacher_width=48, student_width=16, layers=1, teacher_family="llama",
    school_teacher=Stage(2, 1e-3, 4), school_student=Stage(4, 1e-2, 4), teacher=Stage(120, 1e-2, 8),
    student=Stage(6, 5e-3, 4), answers_lr=7e-3, on_policy=Stage(2, 1e-3, 3), samples=2, max_new_tokens=96,
)  # fmt: skip


def answered(puzzle: Puzzle, sample: int = 0, text: str | None = None, **changed) -> Trace:
    """A right answer, unless it is said what is otherwise."""
    asked, text = problem(puzzle), written_solution(puzzle) if text is None else text
    figures = {"tokens": len(text.split()), "finished": True, "correct": True, "well_formed": True, **changed}
    return Trace(asked.key, asked.statement, asked.answer, sample, text, **figures)
