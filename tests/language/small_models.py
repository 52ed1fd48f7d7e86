"""A tokenizer of sixty words, models of two layers, and examples of unequal length."""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

# From tokenizer_config.json of DeepSeek-R1-Distill-Qwen-1.5B, without what concerns tools.
R1_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}"
    "{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)

SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<think>", "</think>"]
WORDS = SPECIAL + [f"w{number}" for number in range(53)]
TEMPLATE = (
    "{% for message in messages %}<user> {{ message.content }} <assistant>{% endfor %}"
    "{% if add_generation_prompt %} <think>{% endif %}"
)


def word_tokenizer(words: list[str] = WORDS, pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    """One token a word; the prompt of "a b" is <user> a b <assistant> <think>."""
    ids = {word: number for number, word in enumerate(words)}
    model = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<eos>", pad_token=pad, unk_token="<unk>", chat_template=TEMPLATE
    )


SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


def qwen(seed: int = 0, vocabulary: int = 60, **changed) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **{**SHAPE, **changed}))


def llama(seed: int = 0, vocabulary: int = 60, **changed) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **{**SHAPE, **changed}))


def pairs(count: int, seed: int = 0, *, statement: int = 7, completion: int = 12) -> list[tuple[str, str]]:
    """Statements and completions of one word up to so many."""
    chance = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(f"w{chance.randrange(53)}" for _ in range(chance.randint(1, words)))

    return [(text(statement), text(completion)) for _ in range(count)]
