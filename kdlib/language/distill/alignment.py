"""Two tokenizations of one text laid side by side: which tokens of student and teacher belong together.

    tokens of the student    | th |ou|sand| rab|bits|
    tokens of the teacher    | thousand   | rabbits |
    groups                   |     1      |    2    |

Both end a token at some of the text's bytes alike. There, and only there, both models have read the same text
and say what comes next, so that they can be compared. What lies between two such places is a group; no finer
partition has both sides' tokens whole. Found from byte offsets, as TRL's GOLD trainer does since
https://github.com/huggingface/trl/pull/5885; before, it compared decoded texts, and one token more on one
side (BOS) made a single group of a whole sequence (https://github.com/huggingface/trl/issues/4393).
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from kdlib.language.models.token_bytes import TokenBytes

__all__ = ["Group", "SharedClasses", "align_tokens", "groups_of", "share_classes"]


class Group(NamedTuple):
    """Neighbouring tokens of both sides, by their places, that cover the same bytes of a text."""

    student: range
    teacher: range
    covered: range  # of the text's UTF-8


def align_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase | TokenBytes,
    teacher_tokenizer: PreTrainedTokenizerBase | TokenBytes, *,
    ids: Sequence[int] | None = None, teacher_ids: Sequence[int] | None = None,
) -> list[Group]:  # fmt: skip
    """The finest partition of a text into groups of whole tokens of the student and of the teacher.

    In order; each byte and each token is in exactly one. A token that covers no byte (BOS, EOS) is in the
    group of what follows it, or of the last byte.

    Args:
        tokenizer, teacher_tokenizer: or their `TokenBytes`, which take a second to make of a large one.
        ids, teacher_ids: the tokens; None where the tokenizers are to make them, without BOS and EOS.

    Raises:
        ValueError: tokens that do not stand for the text (see `TokenBytes.ends`).
    """
    sides = []
    for side, given in ((tokenizer, ids), (teacher_tokenizer, teacher_ids)):
        side = side if isinstance(side, TokenBytes) else TokenBytes(side)
        sides.append(side.ends(side.encode(text) if given is None else given, text))
    return groups_of(*sides)


def groups_of(ends: Sequence[int], teacher_ends: Sequence[int]) -> list[Group]:
    """The groups of two sides whose tokens end at these bytes; both sides end at the same byte."""
    shared = sorted({*ends} & {*teacher_ends} - {0})
    sides = [_cut(side, shared) for side in (ends, teacher_ends)]
    starts = [0, *shared[:-1]]
    return [Group(*group) for group in zip(*sides, map(range, starts, shared), strict=True)]


def _cut(ends: Sequence[int], borders: Sequence[int]) -> list[range]:
    """The places of the tokens up to each border; what covers no byte goes with what follows it."""
    places, start = [], 0
    for border in borders:
        stop = start
        while ends[stop] < border:
            stop += 1
        places.append(range(start, stop + 1))
        start = stop + 1
    return [*places[:-1], range(places[-1].start, len(ends))] if places else places


class SharedClasses(NamedTuple):
    """What the tokens of two vocabularies can be compared by: a class for each piece of text that both have.

    A token that the other vocabulary lacks counts for the first piece in which that vocabulary would write
    it, " rabbits" for " rab"; if that piece is not in both, for the first piece of the piece, and so on. So a
    teacher's mass goes where the student can follow it. TRL's GOLD keeps such tokens in a set of their own,
    and takes mass from the pieces that a student has in their place (Sreenivas et al. 2026, arXiv 2605.21699,
    call it the uncommon-token failure, and project one vocabulary on the other against it).

    The last but one class is the end of a completion, of whatever name; the last is what has no class.
    """

    student: list[int]  # class of each student token, by its id
    teacher: list[int]
    count: int

    @property
    def shared(self) -> int:
        """How many pieces of text both vocabularies have."""
        return self.count - 2


def share_classes(tokens: TokenBytes, teacher_tokens: TokenBytes) -> SharedClasses:
    """The classes of a student's and a teacher's tokens."""
    sides = (tokens, teacher_tokens)
    sets = [{piece for token, piece in side.of.items() if piece and token != side.tokenizer.eos_token_id}
            for side in sides]  # fmt: skip
    numbers = {piece: number for number, piece in enumerate(sorted(sets[0] & sets[1]))}
    end = len(numbers)
    # From each piece that one side alone has to the first in which the other would write it.
    firsts = _first_pieces(sets[0] - sets[1], teacher_tokens) | _first_pieces(sets[1] - sets[0], tokens)

    def number_of(piece: bytes | None) -> int:
        while piece and piece not in numbers:  # it gets shorter
            piece = firsts.get(piece)
        return numbers[piece] if piece else end + 1

    found = []
    for side in sides:
        classes = [end + 1] * (max(side.of) + 1)
        for token, piece in side.of.items():
            classes[token] = number_of(piece)
        if (eos := side.tokenizer.eos_token_id) is not None:
            classes[eos] = end
        found.append(classes)
    return SharedClasses(*found, count=end + 2)


def _first_pieces(pieces: Collection[bytes], other: TokenBytes) -> dict[bytes, bytes]:
    """Of pieces of text the first in which another tokenizer would write each; shorter than the whole."""
    known = {piece for piece in other.of.values() if piece}
    texts = {}
    for piece in pieces:
        with suppress(UnicodeDecodeError):
            texts[piece] = piece.decode()
    encoded = other.tokenizer([*texts.values()], add_special_tokens=False)["input_ids"] if texts else []
    written = {piece: other.of[ids[0]] for piece, ids in zip(texts, encoded, strict=True) if ids}
    firsts = {}
    for piece in pieces:
        first = written.get(piece, b"")
        # Part of a character, or a space put before it: then the longest beginning that is a token.
        if not first or not piece.startswith(first):
            first = next((piece[:n] for n in range(len(piece) - 1, 0, -1) if piece[:n] in known), b"")
        firsts[piece] = first
    return firsts
