import pytest
from small_models import WORDS, llama, qwen, word_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from kdlib.language.models.small import tiny_model
from kdlib.language.models.vocabulary import (
    align_special_tokens,
    check_same_tokens,
    logit_width,
)
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer


def test_tokens_are_counted_up_to_the_highest_id():
    tokenizer = word_tokenizer()
    assert check_same_tokens(tokenizer, None) == 60
    tokenizer.add_special_tokens({"additional_special_tokens": ["<late>"]})
    assert check_same_tokens(tokenizer, None) == 61


def test_a_hole_among_the_ids_is_counted_too():
    ids = {word: number for number, word in enumerate(WORDS[:7]) if number != 5}
    model = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    assert len(tokenizer.get_vocab()) == 6
    assert check_same_tokens(tokenizer, tokenizer) == 7
    with pytest.raises(ValueError, match="student has 6 logits, but tokenizer has tokens up to id 6"):
        check_same_tokens(tokenizer, None, student=qwen(vocabulary=6))


def test_padding_of_the_vocabulary_may_differ():
    student, teacher = qwen(vocabulary=64), llama(vocabulary=72)
    assert (logit_width(student), logit_width(teacher)) == (64, 72)
    assert check_same_tokens(word_tokenizer(), word_tokenizer(), student=student, teacher=teacher) == 60


def test_the_first_differing_token_is_named():
    swapped = [*WORDS[:10], WORDS[11], WORDS[10], *WORDS[12:]]
    with pytest.raises(ValueError, match="has token 10 'w4' where tokenizer has token 10 'w3'"):
        check_same_tokens(word_tokenizer(), word_tokenizer(swapped))
    with pytest.raises(ValueError, match="has no token 59 where tokenizer has token 59 'w52'"):
        check_same_tokens(word_tokenizer(), word_tokenizer(WORDS[:-1]))
    with pytest.raises(ValueError, match="has token 59 'w52' where tokenizer has no token 59"):
        check_same_tokens(word_tokenizer(WORDS[:-1]), word_tokenizer())


def test_a_model_without_a_logit_for_each_token_is_refused():
    for wide in ("student", "teacher"):
        models = {"student": qwen(vocabulary=59), "teacher": qwen(vocabulary=59), wide: qwen(vocabulary=60)}
        narrow = "teacher" if wide == "student" else "student"
        with pytest.raises(ValueError, match=f"{narrow} has 59 logits, but tokenizer has tokens up to id 59"):
            check_same_tokens(word_tokenizer(), None, **models)


def test_padding_of_its_own_is_kept_and_several_ends_too():
    tokenizer = puzzle_tokenizer()
    model = tiny_model(tokenizer, width=16, layers=1)
    model.generation_config.eos_token_id = [5, tokenizer.eos_token_id]
    model.config.eos_token_id = [5, 6]
    model.config.pad_token_id = None
    align_special_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == [5, tokenizer.eos_token_id]
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer.pad_token = None
    align_special_tokens(model, tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id
    # Else from_pretrained would keep the embedding of the end from being trained.
    assert model.config.pad_token_id is None


def test_all_but_special_tokens_are_to_be_the_same():
    check_same_tokens(word_tokenizer(), word_tokenizer(), but_special=True)
    other = word_tokenizer(["<pad>", "<eos>", "<unk>", "<im_start>", *WORDS[4:]])
    with pytest.raises(ValueError, match="token 3 '<im_start>'"):
        check_same_tokens(word_tokenizer(), other, but_special=True)
    named = word_tokenizer()
    named.add_special_tokens({"additional_special_tokens": ["<user>"]})  # now it is a special one
    check_same_tokens(named, other, but_special=True)
    with pytest.raises(ValueError, match="has no token 59 where"):
        check_same_tokens(named, word_tokenizer(WORDS[:-1]), but_special=True)
