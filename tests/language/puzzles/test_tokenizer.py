"""The puzzles' tokenizer: nothing is lost, prompts are DeepSeek-R1's, it is saved like any other."""

import hashlib
import random
from itertools import pairwise

import pytest
from small_models import R1_TEMPLATE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdlib.language.puzzles.make import make_puzzle
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle
from kdlib.language.puzzles.solve import solve
from kdlib.language.puzzles.text import answer_text, statement, written_solution
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer

QUESTION = "A cage holds chickens and rabbits: 10 heads and 28 feet. How many of each?"


@pytest.fixture(scope="module")
def tokenizer():
    return puzzle_tokenizer()


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def texts():
    """Statements, answers and completions: all animals, and random puzzles."""
    rng = random.Random(0)
    puzzles = [
        make_puzzle(kind, rng=rng, heads=(5, 10 ** rng.randint(1, 6)))
        for kind in ("pair", "chain") * 30
    ]
    for name, other in pairwise([*ANIMALS, *ANIMALS]):
        for first, second in ((1, 0), (2, 3), (1, 1)):
            feet = ANIMALS[name].legs * first + ANIMALS[other].legs * second
            puzzles.append(Puzzle((Cage((name, other), first + second, feet),)))
    first = Cage(("chickens", "rabbits"), 3, 10)
    puzzles += [Puzzle((first, Cage(("ants", "crabs"), None, 12 + 6 * more, more=more))) for more in (0, 1)]
    yield from (statement(Puzzle((Cage(("chickens", "ants"), number, feet),)))
                for number in range(1, 150) for feet in (1, 2))  # fmt: skip
    for puzzle in puzzles:
        for language in ("en", "zh"):
            yield statement(puzzle, language)
            if solve(puzzle).status == "unique":
                yield answer_text(puzzle, language)
                for style in ("suppose", "equations"):
                    for think in (True, False):
                        yield written_solution(puzzle, style, language, think)


def test_nothing_is_lost(tokenizer):
    number = 0
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
        number += 1
    assert number > 1000


def test_the_numbers_of_tokens_are_those_of_the_committed_results(tokenizer):
    """Another vocabulary gives tiny models other weights, and every result of the course another value."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == 313
    assert hashlib.sha256("|".join(tokens).encode()).hexdigest()[:16] == "f20ce34bdc98cda7"


def test_one_token_a_word_a_number_a_character(tokenizer):
    assert tokenizer.tokenize("Suppose all are chickens: 10 × 2 = 20 feet. 12x + 4y = 28. x − 3") == [
        "Suppose", " all", " are", " chickens", ":", " 10", " ×", " 2", " =", " 20", " feet", ".",
        " 12", "x", " +", " 4", "y", " =", " 28", ".", " x", " −", " 3",
    ]  # fmt: skip
    assert tokenizer.tokenize("鸡有10−4=6只。") == list("鸡有10−4=6只。")
    assert tokenizer.decode(tokenizer("Twelve chickens")["input_ids"]) == "<unk> chickens"


def test_numbers_up_to_149_after_a_blank_are_one_token(tokenizer):
    for number in range(150):
        for after in ("", " heads", "x", ".", "\n", "只"):
            assert tokenizer.tokenize(f" {number}{after}") == [f" {number}", *([after] if after else [])]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1234", ["1", "2", "3", "4"]),
        ("10", ["1", "0"]),
        (" 150", [" 1", "5", "0"]),
        (" 149", [" 149"]),
        (" 1490", [" 1", "4", "9", "0"]),
        (" 1234", [" 1", "2", "3", "4"]),
        (" 07", [" 0", "7"]),
        (" 007", [" 0", "0", "7"]),
        (" 012", [" 0", "1", "2"]),
        ("2x", ["2", "x"]),
        (" 2x", [" 2", "x"]),
        ("x10", ["x", "1", "0"]),
        ("=10 20", ["=", "1", "0", " 20"]),
        ("  20", ["<unk>", " 20"]),  # nowhere in a puzzle are there two blanks
    ],
)
def test_other_numbers_are_digits(tokenizer, text, tokens):
    assert tokenizer.tokenize(text) == tokens
    if "<unk>" not in tokens:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_numbers_of_any_size_are_not_lost(tokenizer):
    vocabulary = set(tokenizer.get_vocab())
    rng = random.Random(0)
    for number in [*range(100, 200), *(rng.randrange(10 ** rng.randint(1, 9)) for _ in range(100))]:
        for text in (f"{number}", f" {number}", f"+ {number} =", f"−{number}只"):
            tokens = tokenizer.tokenize(text)
            assert "".join(tokens) == text and set(tokens) <= vocabulary
            whole = " " in text and number < 150
            assert sum(t.strip().isdigit() for t in tokens) == (1 if whole else len(str(number)))


def test_special_tokens(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.bos_token == "<｜begin▁of▁sentence｜>"
    assert tokenizer.eos_token == "<｜end▁of▁sentence｜>"
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<｜▁pad▁｜>", 0)
    kept = "<｜User｜>A<｜Assistant｜><think>\n\n</think>\n\nAnswer"
    text = f"<｜begin▁of▁sentence｜>{kept}<｜end▁of▁sentence｜><｜▁pad▁｜>"
    assert tokenizer.tokenize(text) == [
        "<｜begin▁of▁sentence｜>", "<｜User｜>", "A", "<｜Assistant｜>", "<think>", "\n", "\n", "</think>",
        "\n", "\n", "Answer", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>",
    ]  # fmt: skip
    # The marks of thought stay where a verifier looks for them.
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == kept


def test_pads_on_the_left(tokenizer):
    batch = tokenizer(["Answer: 6", "Answer"], padding=True, return_tensors="pt")
    assert batch["input_ids"][1, :2].tolist() == [tokenizer.pad_token_id] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize(
    "messages",
    [
        [user(QUESTION)],
        [{"role": "system", "content": "Answer"}, user(QUESTION)],
        [user(QUESTION), assistant("Answer: 6 chickens.")],
        [user("A"), assistant("Suppose.\n</think>\n\nAnswer: 6."), user("How many?")],
        [user("A"), assistant("<think>\nSuppose.\n</think>\n\nAnswer: 6."), user("How?"), assistant("x")],
    ],
    ids=["question", "system", "answer", "second question", "second answer"],
)
def test_conversations_as_in_r1(tokenizer, messages, generate):
    def rendered(**options):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, **options
        )

    assert rendered() == rendered(chat_template=R1_TEMPLATE)


def test_prompt(tokenizer):
    assert tokenizer.apply_chat_template([user("A cage")], tokenize=False, add_generation_prompt=True) == (
        "<｜begin▁of▁sentence｜><｜User｜>A cage<｜Assistant｜><think>\n"
    )


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_trace_is_rendered_as_it_is_generated(tokenizer, think, opening):
    """The last message keeps its thought, so that prompt + completion + eos are the text to train on."""
    puzzle = Puzzle((Cage(("chickens", "rabbits"), 10, 28),))
    completion = written_solution(puzzle, think=think)
    question = [user(statement(puzzle))]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*question, assistant(opening + completion)])["input_ids"]
    apart = tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert whole == [*prompt, *apart, tokenizer.eos_token_id]


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [user(QUESTION), assistant("Suppose.\n</think>\n\nAnswer: 6."), user("How many?")]
    for text in (QUESTION, "笼子里有鸡", "a\n\n2x", "<think>\n</think><｜end▁of▁sentence｜>"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert (loaded.padding_side, loaded.chat_template) == ("left", tokenizer.chat_template)
    assert loaded.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
