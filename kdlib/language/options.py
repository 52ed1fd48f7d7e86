"""What `run_pipeline` and `python -m kdlib distill` are told. Nothing here is slow to import."""

from dataclasses import MISSING, dataclass, field
from typing import Literal

# As in kdlib.losses.divergences, which imports torch.
Divergence = Literal["forward", "reverse", "jsd", "skew-forward", "skew-reverse", "tvd", "akl"]


def option(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass
class PipelineOptions:
    """What `run_pipeline` does; each field is an option of the command, and its help says what it means."""

    # What is there.
    student: str = option(MISSING, "model to train: one of the six, a repository, or a folder")
    out: str = option(MISSING, "folder for traces, teacher outputs, checkpoints and the trained student")
    teacher: str | None = option(None, "model to learn from; not needed where --traces are all there is")
    problems: str | None = option(None, "file of problems that the teacher is to answer")
    traces: str | None = option(None, "file or folder of traces instead, as `kdlib traces` writes them")
    texts: list[str] | None = option(None, "files of plain text instead: .txt, or .jsonl of text or messages")
    context: int = option(4096, "tokens of a piece into which --texts are cut, or of a text in --plan")
    prompt_tokens: int = option(1, "of a piece of --texts only read: on-policy the student goes on")
    held_out: float = option(0.05, "share of the tokens of --texts held back, to score on before and after")
    test: str | None = option(None, "file of problems that the student answers before and after")
    tokenizer: Literal["student", "teacher"] = option("student", "whose tokenizer and chat template")
    teacher_quantise: Literal["int8", "nf4"] | None = option(None, "pack the teacher's weights")

    # What the teacher writes, and what is kept of it.
    samples: int = option(4, "answers to each problem")
    sampling_temperature: float = option(0.6, "of what teacher and, on-policy, student write")
    top_p: float = option(0.95, "share of the most probable tokens that the teacher draws from")
    max_new_tokens: int = option(4096, "where an answer is cut off")
    sampling_batch: int = option(32, "answers written at once by one device")
    shortest: bool = option(False, "of each problem's right answers keep the shortest")
    unverified: bool = option(False, "keep wrong answers too")
    method: Literal["texts", "logits", "cached", "on-policy"] = option(
        "texts", "texts is R1-Distill's; cached stores the largest logits first"
    )

    # How the student learns: arguments of `distill_language_model`.
    teacher_prompt: Literal["own", "student"] | None = option(
        None, "whose prompt the teacher reads, where their chat templates differ (on-policy: to be chosen)"
    )
    alpha: float | None = option(None, "weight of the hard label (texts 1, on-policy 0, else 0.5)")
    temperature: float = option(1.0, "T of the soft term")
    divergence: Divergence | None = option(None, "of the soft term (forward, on-policy reverse)")
    beta: float = option(0.5, "weight of the teacher in the mixture of jsd and the two skew-…")
    top_k: int | None = option(None, "learn from the teacher's k largest logits only (cached: 64)")
    lora: int | None = option(None, "train matrices of this rank beside the weights (LoRA), not the weights")
    epochs: float | None = option(2.0, "passes over the texts, R1-Distill's were 2 to 3")
    steps: int | None = option(None, "optimizer steps, instead of epochs")
    lr: float = option(1e-5, "highest learning rate")
    batch_size: int = option(1, "texts in a micro-batch of one device")
    accumulation: int = option(8, "micro-batches in a step")
    packing: bool = option(True, "lay short texts end to end")
    group_by_length: bool = option(False, "put texts of similar length into a step")
    precision: Literal["auto", "no", "bf16"] = option("auto", "bf16, or no for float32")
    seed: int = option(0, "of order and sampling")
    save_steps: int | None = option(None, "steps between checkpoints (a tenth of the run)")
    resume: bool = option(True, "go on from the newest checkpoint in the folder")
    gradient_checkpointing: bool = option(False, "compute activations again rather than keep them")
    training_arguments: dict | None = option(None, "more of transformers' TrainingArguments, as JSON")

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.problems, self.traces, self.texts)) != 1:
            raise ValueError(
                f"problems is {self.problems}, traces is {self.traces} and texts is {self.texts}; expected "
                "one of the three: problems that the teacher is to answer, traces of it, or plain texts"
            )
        if self.texts and self.method == "on-policy" and self.prompt_tokens < 2:
            raise ValueError(
                f"prompt_tokens={self.prompt_tokens}; expected more on-policy, for the student to go on from"
            )
        if self.teacher is None and (self.problems or self.method != "texts" or self.tokenizer == "teacher"):
            raise ValueError(
                "teacher is missing; without one expected traces or plain texts, method texts and the "
                "student's tokenizer"
            )
        if self.teacher_prompt == "own" and (self.texts or self.method == "texts"):
            raise ValueError(
                f'teacher_prompt="own" with {"texts" if self.texts else f"method {self.method}"}; expected '
                "problems or traces, and another method than texts, for which the teacher reads prompts"
            )
        if self.steps is not None:
            self.epochs = None
