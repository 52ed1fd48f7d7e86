"""A tokenizer of one token a character, with a chat template that ends in `<think>` and a newline.

Fixed, so that what models of random weights write in these tests changes with nothing in the package.
"""

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<think>", "</think>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .:?=+\n鸡兔只几"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<user>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


def characters_tokenizer() -> PreTrainedTokenizerFast:
    """Think tags are tokens and not special, as R1 has them."""
    model = Tokenizer(WordLevel({t: n for n, t in enumerate([*SPECIAL, *CHARACTERS])}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    model.decoder = decoders.Fuse()
    model.add_tokens(["<user>", "<assistant>", "<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        chat_template=TEMPLATE,
    )  # fmt: skip
