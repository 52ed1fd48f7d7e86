"""The six DeepSeek-R1-Distill checkpoints: shape, size, licence, reported scores, and what their format asks.

    checkpoint = R1_DISTILL["Qwen-1.5B"]
    print(checkpoint)                       # one line
    checkpoint.config()                     # a Qwen2Config, equal to that of the real one
    checkpoint.on_meta().num_parameters()   # 1,777,088,000, in no memory

Each was fine-tuned on about 800,000 texts that DeepSeek-R1 had written or that came with them, without any
soft targets (Guo et al. 2025, arXiv 2501.12948, §2.4). Nothing is downloaded here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kdlib.language.models.small import Family

BENCHMARKS = (
    "AIME 2024 pass@1", "AIME 2024 cons@64", "MATH-500 pass@1", "GPQA Diamond pass@1", "LiveCodeBench pass@1",
    "CodeForces",
)  # fmt: skip
"""Names of `R1Checkpoint.scores`, in the order of the source; in per cent, CodeForces as a rating."""


class Trap(NamedTuple):
    """Something in the format of these checkpoints that goes wrong in silence."""

    name: str
    what: str
    remedy: str  # what to do, and what of this is done here
    families: tuple[Family, ...] = ("qwen2", "llama")


TRAPS = (
    Trap("<think> is already there",
         "The chat template's prompt ends with <think> and a newline, so a completion holds </think> alone.",
         "Never write <think> before a completion that is trained on (distill_language_model refuses it), "
         "and look for the answer after </think>, as verify_answer does."),
    Trap("thoughts are dropped",
         "The template cuts off what precedes </think> in every assistant message, the last one too: "
         "training on a rendered conversation teaches no reasoning.",
         "Tokenize prompt and completion apart, as kdlib does; keep the template for prompts."),
    Trap("two beginnings of sentence",
         "The template writes the token of the beginning, and so does the tokenizer before any text.",
         "Tokenize a rendered prompt with add_special_tokens=False, or let apply_chat_template tokenize it."),
    Trap("the beginning that is an end",
         "config.json names token 151643 as bos_token_id, the end of sentence; the beginning is 151646.",
         "Take special tokens from the tokenizer, never from config.json; load_checkpoint makes both agree.",
         ("qwen2",)),
    Trap("padding is the end",
         "The tokenizer pads with its end of sentence. Who masks labels by that token never learns to stop.",
         "Mask by position, as kdlib does, not by token."),
    Trap("no system prompt",
         "DeepSeek advises against one.",
         "Put everything into the user's turn; for mathematics, ask there for step-by-step reasoning and an "
         "answer in \\boxed{}."),
    Trap("a tokenizer of the wrong class",
         "AutoTokenizer of transformers 5 builds the LlamaTokenizerFast that tokenizer_config.json names, or "
         "Qwen2's, and text may lose blanks (https://github.com/huggingface/transformers/issues/45488).",
         "PreTrainedTokenizerFast.from_pretrained reads tokenizer.json as it is; load_checkpoint does so."),
)  # fmt: skip


@dataclass(frozen=True)
class R1Checkpoint:
    """One of the six, in numbers. All have two matrices for input and output embeddings."""

    name: str  # the key in `R1_DISTILL`
    base: str  # what it was made from, on the Hugging Face Hub
    hidden: int  # width of the hidden states
    feed_forward: int  # and of the feed-forward layer
    layers: int
    heads: int  # of the queries
    kv_heads: int  # of keys and values
    vocabulary: int  # logits, of which `tokens` belong to a token: compare two checkpoints on these alone
    parameters: int
    rope_theta: float  # base of the rotary embedding
    norm_eps: float
    reported: tuple[float, ...]  # the values of `scores`
    family: Family  # type of the architecture in transformers
    tokens: int
    bos: int  # the tokenizer's beginning
    eos: int  # and end
    base_licence: str  # still binds
    licence: str = "MIT"

    def __str__(self) -> str:
        return (
            f"{self.repo.partition('/')[2]}: {self.parameters / 1e9:.2f}B parameters, {self.layers} layers "
            f"of {self.hidden}, {self.heads} heads on {self.kv_heads} of keys and values, "
            f"{self.vocabulary:,} logits; in bf16 {self.weight_bytes / 1e9:.2f} GB, and "
            f"{self.kv_bytes_per_token // 1024} KiB of KV cache a token; {self.licence}, made from "
            f"{self.base} ({self.base_licence})"
        )

    @property
    def repo(self) -> str:
        """On the Hugging Face Hub."""
        return f"deepseek-ai/DeepSeek-R1-Distill-{self.name}"

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in bfloat16, in which they are published."""
        return 2 * self.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that each token of a text being written holds in bfloat16: a key and a value a layer."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def scores(self) -> dict[str, float]:
        """By the names of `BENCHMARKS`, from the README of https://github.com/deepseek-ai/DeepSeek-R1.

        pass@1 is a mean over 64 samples at temperature 0.6 and top-p 0.95, up to 32,768 tokens each; cons@64
        is the vote of 64.
        """
        return dict(zip(BENCHMARKS, self.reported, strict=True))

    @property
    def sampling(self) -> dict[str, float]:
        """As DeepSeek recommends: `collect_traces(…, **checkpoint.sampling)`. At temperature 0 it repeats."""
        return {"temperature": 0.6, "top_p": 0.95}

    @property
    def traps(self) -> tuple[Trap, ...]:
        """Those of `TRAPS` that this checkpoint has."""
        return tuple(trap for trap in TRAPS if self.family in trap.families)

    def config(self) -> PreTrainedConfig:
        """Its configuration: what config.json of the repository says, in transformers 5."""
        rope: dict[str, object] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.family == "llama":
            # Llama 3.1 and 3.3 stretch 8,192 positions to 131,072 by slowing the low frequencies eightfold.
            rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192}  # fmt: skip
        return AutoConfig.for_model(
            self.family,
            architectures=["Qwen2ForCausalLM" if self.family == "qwen2" else "LlamaForCausalLM"],
            hidden_size=self.hidden, intermediate_size=self.feed_forward, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, vocab_size=self.vocabulary,
            max_position_embeddings=131_072, rope_parameters=rope, rms_norm_eps=self.norm_eps,
            bos_token_id=self.eos if self.family == "qwen2" else self.bos,  # one of the `TRAPS`
            eos_token_id=self.eos, tie_word_embeddings=False, dtype="bfloat16",
        )  # fmt: skip

    def on_meta(self) -> PreTrainedModel:
        """The model with all its shapes, in bfloat16, and without memory: torch's "meta" device."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config(), dtype=torch.bfloat16)


_QWEN = {"family": "qwen2", "tokens": 151665, "bos": 151646, "eos": 151643, "base_licence": "Apache-2.0"}
_LLAMA = {"family": "llama", "tokens": 128256, "bos": 128000, "eos": 128001}

# name, base; hidden, feed-forward, layers, heads, heads of keys and values; logits, parameters; rope_theta,
# norm_eps; scores. Shapes are from config.json of each repository; a test counts the parameters.
R1_DISTILL = {one.name: one for one in (
    R1Checkpoint("Qwen-1.5B", "Qwen/Qwen2.5-Math-1.5B", 1536, 8960, 28, 12, 2, 151936, 1_777_088_000,
                 1e4, 1e-6, (28.9, 52.7, 83.9, 33.8, 16.9, 954), **_QWEN),
    R1Checkpoint("Qwen-7B", "Qwen/Qwen2.5-Math-7B", 3584, 18944, 28, 28, 4, 152064, 7_615_616_512,
                 1e4, 1e-6, (55.5, 83.3, 92.8, 49.1, 37.6, 1189), **_QWEN),
    R1Checkpoint("Llama-8B", "meta-llama/Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128256, 8_030_261_248,
                 5e5, 1e-5, (50.4, 80.0, 89.1, 49.0, 39.6, 1205), **_LLAMA,
                 base_licence="Llama 3.1 Community License"),
    R1Checkpoint("Qwen-14B", "Qwen/Qwen2.5-14B", 5120, 13824, 48, 40, 8, 152064, 14_770_033_664,
                 1e6, 1e-5, (69.7, 80.0, 93.9, 59.1, 53.1, 1481), **_QWEN),
    R1Checkpoint("Qwen-32B", "Qwen/Qwen2.5-32B", 5120, 27648, 64, 40, 8, 152064, 32_763_876_352,
                 1e6, 1e-5, (72.6, 83.3, 94.3, 62.1, 57.2, 1691), **_QWEN),
    R1Checkpoint("Llama-70B", "meta-llama/Llama-3.3-70B-Instruct", 8192, 28672, 80, 64, 8, 128256,
                 70_553_706_496, 5e5, 1e-5, (70.0, 86.7, 94.5, 65.2, 57.5, 1633), **_LLAMA,
                 base_licence="Llama 3.3 Community License"),
)}  # fmt: skip
"""The six by their short names, smallest first."""


def find(name_or_repo: str) -> R1Checkpoint:
    """The checkpoint of this name ("Qwen-7B") or repository, with or without its owner, or a ValueError."""
    for checkpoint in R1_DISTILL.values():
        known = (checkpoint.name, checkpoint.repo, checkpoint.repo.partition("/")[2])
        if name_or_repo.lower() in map(str.lower, known):
            return checkpoint
    raise ValueError(f"name_or_repo is {name_or_repo!r}; expected one of {', '.join(R1_DISTILL)}")
