"""A tokenizer for puzzles, small enough to read, of the same class as those of real checkpoints.

One token for a word, or for a number up to 149, together with the blank before it; one for a Chinese
character; one for each digit of other numbers. A vocabulary of more than 120,000 tokens, as Llama 3 and Qwen2
have it, would make the embedding of a tiny model far larger than the rest of it. Special tokens and chat
template are those of DeepSeek-R1.
"""

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AddedToken, PreTrainedTokenizerFast

from kdlib.language.puzzles.puzzle import ANIMALS

__all__ = ["CHAT_TEMPLATE", "puzzle_tokenizer"]

BOS, EOS, PAD, UNKNOWN = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<unk>"
# As in DeepSeek-R1, these are not "special": decode(skip_special_tokens=True) keeps them.
ROLES = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]

# DeepSeek-R1's template without its tools. There the thought of every assistant message is dropped; here the
# last message keeps it, so that a trace is rendered for training as it is generated.
CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set ns.system = message['content'] -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'user' -%}
{{- '<｜User｜>' + content -}}
{%- elif message['role'] == 'assistant' -%}
{%- if '</think>' in content and not loop.last -%}
{%- set content = content.split('</think>')[-1] -%}
{%- elif '</think>' in content and not content.startswith('<think>') -%}
{%- set content = '<think>\\n' + content -%}
{%- endif -%}
{{- '<｜Assistant｜>' + content + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜><think>\\n' -}}
{%- endif -%}"""

# Words, signs and characters of `kdlib.language.puzzles.text`, beside the names of animals. Some (twice,
# z, 组 …) are written no longer, but the models of the committed results have embeddings for them.
_FIRST_WORDS = "A Suppose Let Set Group Answer"
_WORDS = (
    "A An Another cage How Suppose Let Group "
    "holds and heads head feet foot as many the of each in last twice times more than "
    "all are missing has have aside with too fewer group groups so"
)
_SIGNS = "+ − × ÷ ="
_LARGEST = 149  # number that is one token; _WHOLE are those up to it, without zeros in front
_WHOLE = r" (?:1[0-4][0-9]|[1-9]?[0-9])(?![0-9])"
_CHINESE = (
    "笼子里有和共个头只脚各几另一数的相同最后比多样是倍"
    "假设全还差每答案先去掉剩把看作组少了所以"
)  # fmt: skip
_PUNCTUATION = ". , : ? ， 。 ： ？ 、"


def _vocabulary() -> list[str]:
    digits, letters = list("0123456789"), list("xyz")
    animals = [name for animal in ANIMALS.values() for name in (animal.name, animal.singular)]
    signs = _SIGNS.split()
    words = [*map(str, range(_LARGEST + 1)), *signs, *letters, *_WORDS.split(), *animals]
    chinese = _CHINESE + "".join(animal.chinese for animal in ANIMALS.values())
    tokens = [PAD, BOS, EOS, UNKNOWN, *ROLES, "\n", *digits, *signs, *letters, *_PUNCTUATION.split()]
    tokens += [f" {word}" for word in words] + _FIRST_WORDS.split() + list(chinese)
    return list(dict.fromkeys(tokens))  # 甲 and the like occur once


def puzzle_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the puzzles: everything `kdlib.language.puzzles.text` writes is decoded as it was.

    Other words become `<unk>`. Pads on the left, as generation needs it; eos is not added by encoding. In a
    folder with a Qwen2 model load it with `PreTrainedTokenizerFast.from_pretrained`, for there
    `AutoTokenizer` expects Qwen2's own.
    """
    vocabulary = {token: number for number, token in enumerate(_vocabulary())}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    # A newline is always one token by itself: otherwise the tokens of a prompt ("<think>\n") and of an empty
    # thought ("\n</think>") would not be the tokens of both in one text.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(rf" ?[A-Za-z]+|{_WHOLE}| ?[0-9]| ?[^\sA-Za-z0-9]|\s"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    # Their numbers are in the vocabulary; this makes the tokenizer find them in a text before it is split.
    tokenizer.add_tokens([AddedToken(role, normalized=False, special=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, padding_side="left",
        clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
