"""python tests/processes/exported.py FOLDER: what TRL's SFTTrainer makes of the files in FOLDER.

FOLDER holds `model` (with its tokenizer) and JSON lines. For each NAME.jsonl FOLDER/NAME.pt gets the whole
data set as the trainer prepared it, its first batches with their losses and gradients, and what it logged;
FOLDER/defaults.json how long a text may be unless told otherwise.
"""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import disable_progress_bars, load_dataset  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


def trained(folder: Path, name: str) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    data = load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train",
                        cache_dir=str(folder / "datasets"))  # fmt: skip
    arguments = SFTConfig(
        str(folder / f"{name}.run"), max_length=None, per_device_train_batch_size=4, max_steps=2,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        logging_steps=1, learning_rate=1e-2, lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip

    batches = []

    class Watched(SFTTrainer):
        def compute_loss(self, model, inputs, *arguments, **named):
            kept = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
            loss = super().compute_loss(model, inputs, *arguments, **named)
            (gradient,) = torch.autograd.grad(loss, model.lm_head.weight, retain_graph=True)
            batches.append(kept | {"loss": loss.detach(), "gradient": gradient})
            return loss

    trainer = Watched(model, arguments, train_dataset=data, processing_class=tokenizer)
    prepared = [dict(row) for row in trainer.train_dataset]
    trainer.train()
    logged = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {"prepared": prepared, "batches": batches, "logged": logged}


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    disable_progress_bars()
    folder = Path(sys.argv[1])
    default = SFTConfig(str(folder / "unused"), use_cpu=True, bf16=False).max_length
    (folder / "defaults.json").write_text(json.dumps({"max_length": default}))
    for path in sorted(folder.glob("*.jsonl")):
        torch.save(trained(folder, path.stem), folder / f"{path.stem}.pt")
