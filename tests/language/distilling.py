"""python tests/language/distilling.py FOLDER: language models trained in real processes and killed.

The training processes are forks of this one, which itself computes nothing: importing takes seconds. Each
leaves the history and the weights of its run in a safetensors file; FOLDER/kills.json says how each killed
process ended, and at which step the next one took up the run.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch._dynamo  # the optimizer imports it at its first step: once, not in each fork  # noqa: F401
import transformers  # whose Trainer imports peft, and that bitsandbytes: kdlib comes first
from small_models import llama, pairs, qwen, word_tokenizer

from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.hidden import HiddenMatch
from kdlib.language.distill.trainer import DistillationTrainer
from kdlib.storage import save_tensors

sys.path.append(str(Path(__file__).parents[1] / "processes"))
from forks import LIMIT  # noqa: E402

# Where processes are killed: after so many steps of their own, or in the middle of their first or second
# checkpoint. "weights": these are written, and nothing else; "state": half of the last file is; "model": the
# run has come to its end, and the trained model is half written.
MOMENTS = {
    "texts": [("weights", 1), ("state", 2), ("model", 1)],
    "on_policy": [("step", 4)],  # taken up from step 3, in the middle of an epoch
    "adapted": [("state", 2)],  # LoRA with dropout, and maps between hidden states
}


def texts(folder: Path, name: str, **changed) -> None:
    """On texts and logits, with dropout, over two epochs of which the last batch is smaller."""
    student, teacher = qwen(attention_dropout=0.2), llama(1)
    settings = {"steps": 5, "lr": 3e-3, "batch_size": 4, "accumulation": 2, "save_steps": 2, **changed}
    leave(folder, name, student, pairs(29), teacher=teacher, **settings)


def on_policy(folder: Path, name: str, **changed) -> None:
    settings = {"steps": 5, "lr": 3e-3, "batch_size": 4, "max_new_tokens": 5, "save_steps": 3, **changed}
    leave(folder, name, qwen(), pairs(13), teacher=llama(1), on_policy=True, **settings)


def adapted(folder: Path, name: str, **changed) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear")
    settings = {"steps": 5, "lr": 3e-3, "batch_size": 4, "packing": True, "save_steps": 2, **changed}
    leave(folder, name, qwen(), pairs(29), teacher=llama(1, hidden_size=48), lora=lora, hidden=HiddenMatch(),
          **settings)  # fmt: skip


def leave(folder: Path, name: str, student, data, **settings) -> None:
    history = distill_language_model(
        student, word_tokenizer(), data, folder / name, device="cpu", seed=3, **settings
    )
    save_tensors(folder / f"{name}.safetensors", student.state_dict(), {"history": asdict(history)})


# --- killed -------------------------------------------------------------------------------------------------


def stand_still_at(moment: str, count: int, tell: Callable[[str], None]) -> None:
    """Make this process tell of its steps, and stand still at the moment until it is killed."""
    left = [count]

    def reached() -> None:
        left[0] -= 1
        if not left[0]:
            tell("here")
            time.sleep(LIMIT)

    def after(owner, name: str, then: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **options):
            result = original(*args, **options)
            then()
            return result

        setattr(owner, name, wrapped)

    after(DistillationTrainer, "on_step_end", lambda: tell("step"))
    if moment == "step":
        after(DistillationTrainer, "on_step_end", reached)
    elif moment == "weights":
        after(DistillationTrainer, "_save", reached)
    elif moment == "state":
        write = transformers.TrainerState.save_to_json

        def half(state, path):
            write(state, path)
            if left[0] == 1:
                Path(path).write_bytes(Path(path).read_bytes()[:100])
            reached()

        transformers.TrainerState.save_to_json = half
    else:

        def half_model(trainer, folder, *_, **__):
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            reached()

        save = DistillationTrainer.save_model
        DistillationTrainer.save_model = lambda trainer, folder=None, **options: (
            save if options else half_model
        )(trainer, folder or trainer.args.output_dir, **options)  # with options: of a checkpoint


def process(run: Callable[[], None], moment: tuple[str, int] | None) -> dict[str, object]:
    """A fork that runs, until its end or until it is killed at the moment: how it ended, its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            stand_still_at(*(moment or ("step", 10**9)), lambda word: os.write(writing, f"{word}\n".encode()))
            run()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    told = b""
    while part := os.read(reading, 4096):
        told += part
        if b"here" in told:
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("training failed")
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return {"moment": moment, "signal": ended, "steps": told.decode().split().count("step")}


def kills(folder: Path) -> None:
    report = {"imported": sorted({"bitsandbytes", "peft"} & {*sys.modules})}
    for run in (texts, on_policy, adapted):
        name = run.__name__
        whole = process(lambda run=run, name=name: run(folder, f"{name}_undisturbed"), None)
        killed = [
            process(lambda run=run, name=name: run(folder, f"{name}_killed"), moment)
            for moment in [*MOMENTS[name], None]
        ]
        report[name] = {"undisturbed": whole, "killed": killed}
    (folder / "kills.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    gc.freeze()  # Trainer collects garbage as it begins, mostly among modules imported long ago
    here = Path(sys.argv[1])
    kills(here)
    os._exit(0)  # libraries complain of objects that are frozen as they are taken down
