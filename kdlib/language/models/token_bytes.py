"""Which bytes of a text each token stands for, whatever the tokenizer writes them in.

Tokenizers spell bytes in different ways, which their decoders undo; three are in use (Kudo and Richardson
2018, D18-2012; Radford et al. 2019, §2.2; Devlin et al. 2019, N19-1423):

| kind | " é" may be written as | and read back by |
|---|---|---|
| byte-level (GPT-2, Llama 3, Qwen, DeepSeek, SmolLM2) | `ĠÃ©`, a letter for each byte | the letters' table |
| SentencePiece (Llama 2, Mistral, Gemma) | `▁é`, or `▁` `<0xC3>` `<0xA9>` | ▁ is a space, `<0x..>` a byte |
| WordPiece (BERT) | `é`, and `##é` within a word | `##` is nothing; spaces are lost |

What is read back is compared with the text. A tokenizer that changes the text (NFC, lower case, spaces that
it drops) is refused for texts that it changes, and for no others.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, product

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kdlib.language.problems import check_text

__all__ = ["TokenBytes"]

_AROUND = 2  # tokens that may stand before and after a text: BOS, EOS, and one more of a kind
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TokenBytes:
    """The bytes that each token of a tokenizer stands for.

    Attributes:
        tokenizer: it.
        of: the bytes by token id; an added token, special or not, stands for its name.

    Raises:
        ValueError: a tokenizer that is not one of the `tokenizers` library, or whose decoder is unknown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"tokenizer is {tokenizer!r:.60}; expected a fast one, which tells its decoder")
        self.tokenizer = tokenizer
        described = json.loads(backend.to_str())
        read = _reader(described)
        self._added = {added["id"] for added in described["added_tokens"]}
        self.of: dict[int, bytes] = {
            number: token.encode() if number in self._added else read(token)
            for token, number in backend.get_vocab(with_added_tokens=True).items()
        }

    def encode(self, text: str) -> list[int]:
        """The token ids of a text alone, without what a tokenizer puts around it.

        Raises:
            ValueError: half a character, which has no UTF-8.
        """
        check_text("text", text)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def ends(self, ids: Sequence[int], text: str) -> list[int]:
        """Where each token's bytes end in the UTF-8 of a text; one that stands for none ends where it begins.

        None stands for what is put around a text (BOS, EOS), and a space that SentencePiece puts before it.

        Raises:
            ValueError: these are not the tokens of this text, or the tokenizer changes it; it says where.
        """
        check_text("text", text)
        whole = text.encode()
        # As few as possible are taken for what stands around the text: the text may name such tokens itself.
        for before, after in sorted(product(range(_AROUND + 1), repeat=2), key=sum):
            inside = ids[before : max(before, len(ids) - after)]
            around = len(ids) - len(inside)
            if around == before + after and self._added.issuperset([*ids[:before], *ids[len(ids) - after :]]):
                lengths = self._lengths(inside, whole)
                if lengths is not None:
                    return [*accumulate([0] * before + lengths + [0] * after)]
        raise ValueError(self._difference(ids, text))

    def _lengths(self, ids: Sequence[int], text: bytes) -> list[int] | None:
        """How many bytes each token covers, if these are all that the text has."""
        lengths, place = [], 0
        for added, run in groupby(ids, self._added.__contains__):
            pieces = [self.of.get(i, b"\xff") for i in run]
            read = b"".join(pieces)
            more = [*map(len, pieces)]
            # SentencePiece puts a space before a text, and before what follows a special token.
            if not added and read[:1] == b" " and not text.startswith(read, place):
                read = read[1:]
                more[next(n for n, length in enumerate(more) if length)] -= 1
            if not text.startswith(read, place):
                return None
            lengths += more
            place += len(read)
        return lengths if place == len(text) else None

    def _difference(self, ids: Sequence[int], text: str) -> str:
        read = b"".join(self.of.get(i, b"") for i in ids).decode(errors="replace")
        name = type(self.tokenizer).__name__
        place = next((n for n, (a, b) in enumerate(zip(read, text, strict=False)) if a != b), None)
        if place is None:
            place = min(len(read), len(text))
        ours, theirs = (part[max(0, place - 10) : place + 20] for part in (text, read))
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        hint = f" Its normalizer is {type(normalizer).__name__}: normalise the texts first."
        return (
            f"the tokens of {name} do not stand for the text: it has {ours!r} where they read {theirs!r}. "
            "Expected a tokenizer that keeps every byte of this text, and the tokens that it makes of it."
            + (hint if normalizer else "")
        )


def _reader(described: Mapping[str, object]) -> Callable[[str], bytes]:
    """From a token as its vocabulary spells it to bytes, by a tokenizer's own description of itself."""
    parts = [*_parts(described["decoder"]), *_parts(described["pre_tokenizer"])]
    kinds = {part["type"]: part for part in parts}
    if "ByteLevel" in kinds:
        letters = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}
        return lambda token: b"".join([letters.get(letter) or letter.encode() for letter in token])
    replaced = {part["pattern"].get("String"): part["content"] for part in parts if part["type"] == "Replace"}
    if "Metaspace" in kinds:
        replaced[kinds["Metaspace"]["replacement"]] = " "
    within = kinds["WordPiece"]["prefix"] if "WordPiece" in kinds else ""
    fallback = "ByteFallback" in kinds or described["model"].get("byte_fallback")

    def read(token: str) -> bytes:
        if fallback and _BYTE.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        token = token.removeprefix(within)
        for spelled, meant in replaced.items():
            token = token.replace(spelled, meant) if spelled else token
        return token.encode()

    return read


def _parts(step: Mapping[str, object] | None) -> Iterator[Mapping[str, object]]:
    """A step of a tokenizer, or those that it is a sequence of."""
    if step is not None:
        inside = step.get("decoders") or step.get("pretokenizers")
        yield from [step] if inside is None else (part for one in inside for part in _parts(one))
