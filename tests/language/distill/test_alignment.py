"""Groups of tokens that cover the same bytes: ten thousand strings, tokenizers of all kinds and real ones."""

import random
import unicodedata
from functools import cache
from itertools import accumulate, combinations, combinations_with_replacement

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_of_all_kinds import MADE, REAL, byte_level, normalised, real, unigram, wordpiece
from transformers import PreTrainedTokenizerFast

from kdlib.language.distill.alignment import Group, align_tokens, groups_of, share_classes
from kdlib.language.models.token_bytes import TokenBytes
from kdlib.places import DOWNLOADS

POOLS = [
    "abcdefghij The rabbits and chickens 0123456789,.:?", "  \t\n\r\u00a0\u3000\u2028", "éüñçßøÅ",
    "日本語今有雉兔同笼", ["👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "😀", "\u200d", "\ufe0f", "🇩🇪"],
    "\u0301\u0308\u0323\u20dd\u0915\u094d\u0937\u0e33", "\0\1\3\5\x1b\x7f\x85\u200b\ufeff\ufffd\u202e",
    "مرحبا שלום Ελλάδα", "\ud7ff\ue000\uffff\U00010000\U0010ffff\U00012000",
    ["<s>", "</s>", "<think>", "<|im_end|>", "<|im_start|>", "<0x0A>", "##a", "Ġa", "▁", "<unk>", "[UNK]"],
]  # fmt: skip


AROUND = {0, 1, 2, 128_000}  # the ids that tokenizers give BOS and EOS, here, in Mistral's and in Llama 3's


@cache
def made(name):
    return TokenBytes(MADE[name]())


def strings(count, seed=0):
    """Random Unicode, most of it text, some of it spaces in front and what looks like tokens."""
    rng = random.Random(seed)
    for _ in range(count):
        pools = rng.choices(POOLS, [8, 2, 1, 2, 1, 1, 0.5, 1, 0.5, 0.5], k=rng.randint(1, 5))
        yield rng.choice(["", "", " "]) + "".join(
            "".join(rng.choices(pool, k=rng.randint(0, 6))) for pool in pools
        )


def check_groups(groups, text, ends):
    """Of one text and both sides' ends of tokens: a partition, in order, and the finest."""
    size = len(text.encode())
    assert [byte for group in groups for byte in group.covered] == [*range(size)]
    for side, name in zip(ends, ("student", "teacher"), strict=True):
        places = [place for group in groups for place in getattr(group, name)]
        assert places == ([*range(len(side))] if groups else [])
        for group in groups:  # whole tokens, which begin and end where the group does
            mine = getattr(group, name)
            assert side[mine[-1]] == group.covered.stop
            assert mine[0] == 0 or side[mine[0] - 1] <= group.covered[0]
    borders = {group.covered.stop for group in groups} | {0}
    assert borders == ({*ends[0]} & {*ends[1]}) | {0}


def aligned(sides, encoded, text):
    """The groups, checked; or the side that refuses the text."""
    ends = []
    for side, ids in zip(sides, encoded, strict=True):
        try:
            ends.append(side.ends(ids, text))
        except ValueError as error:
            assert "do not stand for the text" in str(error)
            return side
        whole, start = text.encode(), 0
        for token, end in zip(ids, ends[-1], strict=True):  # its bytes; or none, if it stands around the text
            covered, start = whole[start:end], end
            assert side.of[token] in (covered, b" " + covered) or not covered and token in AROUND
        assert start == len(whole)
    groups = groups_of(*ends)
    check_groups(groups, text, ends)
    return groups


def read_back(side, ids, groups, name, text):
    """What tokenizers itself decodes of each group's tokens is the text that the group covers."""
    whole = text.encode()
    for group in groups:
        mine = [ids[place] for place in getattr(group, name)]
        covered = whole[group.covered.start : group.covered.stop].decode(errors="replace")
        read = side.tokenizer.decode(mine, clean_up_tokenization_spaces=False)
        if side.of[mine[0]] != read[:2].encode():  # WordPiece's decoder leaves the ## of a first token
            read = read.removeprefix("##")
        around = side.tokenizer.all_special_tokens
        for token in (*around, "") if covered not in around else ("",):
            if read.lstrip(" ") == covered.lstrip(" "):  # a decoder drops the space of ▁ at a beginning
                break
            read = read.removeprefix(token).removesuffix(token)
        assert read.lstrip(" ") == covered.lstrip(" ") or "�" in covered


def test_each_byte_of_ten_thousand_strings_is_in_one_group():
    pairs = [*combinations_with_replacement(MADE, 2)]
    texts, refused = [*strings(10_000)], {}
    for number, (one, other) in enumerate(pairs):
        mine = texts[number :: len(pairs)]
        sides = made(one), made(other)
        encoded = [side.tokenizer(mine)["input_ids"] for side in sides]  # with BOS and EOS, if any
        for place, text in enumerate(mine):
            ids = [side[place] for side in encoded]
            groups = aligned(sides, ids, text)
            if isinstance(groups, TokenBytes):
                at = ids[groups is sides[1] and sides[0] is not sides[1]]
                read = groups.tokenizer.decode(at, clean_up_tokenization_spaces=False)
                assert read != text, "refused, though it can be read back"
                refused[text] = groups.tokenizer
            elif place < 12:
                for side, tokens, name in zip(sides, ids, ("student", "teacher"), strict=True):
                    read_back(side, tokens, groups, name, text)
    assert len(texts) == 10_000 and len(refused) < 3_000
    # Byte-level tokenizers keep everything.
    assert not any("ByteLevel" in str(tokenizer.backend_tokenizer.decoder) for tokenizer in refused.values())


PIECES = st.one_of(st.text(max_size=4), *(st.sampled_from([*pool]) for pool in POOLS))


@given(st.lists(PIECES, max_size=8).map("".join))
@settings(max_examples=100, deadline=None)
def test_the_shortest_string_that_fails_would_be_shown(text):
    """A hundred from hypothesis, which looks for it; ten thousand would take it minutes."""
    sides = [made(name) for name in ("byte-level, BOS", "bytes")]
    ids, teacher_ids = (side.tokenizer(text)["input_ids"] for side in sides)
    groups = align_tokens(text, *sides, ids=ids, teacher_ids=teacher_ids)
    assert groups == aligned(sides, (ids, teacher_ids), text)


@pytest.mark.index
def test_each_byte_of_ten_thousand_strings_is_in_one_group_of_real_tokenizers():
    """SmolLM2's, Qwen3's, DeepSeek-V4's, Mistral's, Llama 3's; each pair gets a tenth of the strings."""
    folder = DOWNLOADS / "smollm2"
    if not folder.exists():
        pytest.skip("SmolLM2 is not in data/downloads: python -m kdlib fetch smollm2")
    sides = {"smollm2": TokenBytes(PreTrainedTokenizerFast.from_pretrained(folder))}
    sides |= {name: TokenBytes(real(name)) for name in REAL}
    # SmolLM2's vocabulary lacks some bytes, and drops characters that need them.
    known = {piece[0] for piece in sides["smollm2"].of.values() if len(piece) == 1}
    changes = {
        "smollm2": lambda text: {*text.encode()} - known,
        "qwen3": lambda text: unicodedata.normalize("NFC", text) != text,
        "mistral": lambda text: "▁" in text, "deepseek-v4": lambda text: False, "llama-3": lambda text: False,
    }  # fmt: skip
    texts, kept = [*strings(10_000, seed=1)], 0
    pairs = [*combinations(sides, 2)]
    for number, names in enumerate(pairs):
        mine, pair = texts[number :: len(pairs)], [sides[name] for name in names]
        encoded = [side.tokenizer(mine)["input_ids"] for side in pair]
        for text, *ids in zip(mine, *encoded, strict=True):
            groups = aligned(pair, ids, text)
            expected = next((sides[name] for name in names if changes[name](text)), None)
            if expected is None:
                assert not isinstance(groups, TokenBytes), text
                kept += 1
            else:
                assert groups is expected, text
    assert kept > 8_000


def test_groups_are_what_a_reader_would_draw():
    ends, teacher_ends = [2, 4, 8, 12, 16], [8, 9, 16]
    assert groups_of(ends, teacher_ends) == [
        Group(range(0, 3), range(0, 1), range(0, 8)), Group(range(3, 5), range(1, 3), range(8, 16)),
    ]  # fmt: skip
    assert groups_of([], []) == []
    # BOS before, an end behind, a space that is not in the text: they go with their neighbours.
    assert groups_of([0, 0, 3, 5, 5], [3, 5]) == [
        Group(range(0, 3), range(0, 1), range(0, 3)), Group(range(3, 5), range(1, 2), range(3, 5)),
    ]  # fmt: skip


def test_a_bos_on_one_side_makes_no_single_group_of_a_text():
    """As it did in TRL before https://github.com/huggingface/trl/pull/5885."""
    text = "The cage holds 35 heads"
    with_bos, without = byte_level(350, bos=True), byte_level()
    groups = align_tokens(
        text, with_bos, without, ids=with_bos(text)["input_ids"], teacher_ids=without(text)["input_ids"]
    )
    assert with_bos(text)["input_ids"][0] == with_bos.bos_token_id
    assert [*groups[0].student] == [0, 1, 2] and len(groups) == 5
    assert [group.covered for group in groups] == [g.covered for g in align_tokens(text, with_bos, without)]


def test_special_tokens_of_the_text_are_not_those_around_it():
    sides = TokenBytes(byte_level(350, bos=True)), TokenBytes(unigram())
    text = "<s>a</s>"
    ids = sides[0].tokenizer(text)["input_ids"]
    assert sides[0].ends(ids, text) == [0, 3, 4, 8, 8]
    groups = align_tokens(text, *sides, ids=ids)
    assert [group.covered for group in groups] == [range(0, 3), range(3, 4), range(4, 8)]
    assert [*groups[0].student] == [0, 1] and [*groups[-1].student] == [3, 4]


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        (normalised("NFC"), "cafe\u0301!", "it has 'cafe\u0301!' where they read 'café!'.*NFC"),
        (normalised("NFKC"), "x² + 1", "it has 'x² . 1' where they read 'x2.*is NFKC"),
        (normalised("Lowercase"), "The cage", "'The cage' where they read 'the cage'"),
        (wordpiece(spaces=False), "two heads", "it has 'two heads' where they read 'two"),
        (wordpiece(), "heads ☃", "where they read 'heads"),
        (unigram(), "a▁b", "it has 'a▁b' where they read ' a b'"),
    ],
)  # fmt: skip
def test_tokenizers_that_change_a_text_say_what_differs(tokenizer, text, message):
    with pytest.raises(ValueError, match=f"the tokens of .* do not stand for the text: .*{message}"):
        align_tokens(text, byte_level(), tokenizer)
    assert align_tokens("cage", byte_level(), tokenizer)[-1].covered.stop == 4


def test_tokens_of_another_text_and_half_characters_are_refused():
    tokenizer = byte_level()
    with pytest.raises(ValueError, match="it has 'heads' where they read 'heaps'"):
        align_tokens("heads", tokenizer, tokenizer, teacher_ids=tokenizer("heaps")["input_ids"])
    with pytest.raises(ValueError, match="do not stand for the text: it has 'heads' where they read 'head'"):
        align_tokens("heads", tokenizer, tokenizer, ids=tokenizer("head")["input_ids"])
    with pytest.raises(ValueError, match="text holds half a character at place 1"):
        align_tokens("a\ud83d", tokenizer, tokenizer)
    with pytest.raises(ValueError, match="tokenizer is None; expected a fast one"):
        align_tokens("a", tokenizer, None)


# --- classes ------------------------------------------------------------------------------------------------


def naive_class(token, mine, other, common):
    """The longest way down: the first piece in which the other side writes a piece, until both have it."""
    piece = mine.of[token]
    while piece not in common:
        try:
            first = other.of[other.encode(piece.decode())[0]]
        except (UnicodeDecodeError, IndexError):
            first = b""
        if not first or not piece.startswith(first):
            first = max((p for p in other.of.values() if p and piece.startswith(p)), key=len, default=b"")
        if not first:
            return None
        piece, mine, other = first, other, mine
    return piece


@pytest.mark.parametrize(
    "names", [("byte-level", "byte-level, 300"), ("bytes", "unigram"), ("WordPiece", "bytes")]
)
def test_a_token_that_one_side_lacks_counts_for_the_first_piece_it_is_written_in(names):
    student, teacher = (made(name) for name in names)
    classes = share_classes(student, teacher)
    common = {*student.of.values()} & {*teacher.of.values()} - {b"", b"</s>"}
    ends = [side.tokenizer.eos_token_id for side in (student, teacher)]
    assert classes.shared == len(common)
    assert classes.student[ends[0]] == classes.teacher[ends[1]] == len(common)
    numbers = {}
    for side, other, found, end in (
        (student, teacher, classes.student, ends[0]), (teacher, student, classes.teacher, ends[1]),
    ):  # fmt: skip
        assert len(found) == max(side.of) + 1
        for token in side.of:
            if token != end:
                piece = naive_class(token, side, other, common)
                assert numbers.setdefault(piece, found[token]) == found[token]
    assert numbers.pop(None, classes.count - 1) == classes.count - 1
    assert sorted(numbers.values()) == [*range(len(common))]


def test_of_the_same_tokens_each_has_a_class_of_its_own():
    tokens = TokenBytes(byte_level())
    classes = share_classes(tokens, tokens)
    assert classes.student == classes.teacher and sorted(classes.student) == [*range(len(tokens.of))]


def test_classes_of_a_thousand_rabbits():
    """A student of letters and a teacher of words: the words count for their first letters."""
    student, teacher = made("bytes"), TokenBytes(byte_level())
    classes = share_classes(student, teacher)
    piece = {number: spelled for number, spelled in teacher.of.items() if len(spelled) > 4}
    for token, spelled in [*piece.items()][:50]:
        letter = next(number for number, one in student.of.items() if one == spelled[:1])
        assert classes.teacher[token] == classes.student[letter] or token == teacher.tokenizer.eos_token_id


def test_ends_are_sums_of_pieces():
    side = TokenBytes(byte_level())
    for text in strings(200, seed=3):
        ids = side.encode(text)
        assert side.ends(ids, text) == [*accumulate(len(side.of[token]) for token in ids)]
        assert b"".join(side.of[token] for token in ids) == text.encode()
