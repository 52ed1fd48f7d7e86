import pytest
from small_models import WORDS, llama, qwen, word_tokenizer

from kdlib.reasoning.vocabulary import check_same_tokens, logit_width, real_tokens


def test_tokens_are_counted_up_to_the_highest_id():
    tokenizer = word_tokenizer()
    assert real_tokens(tokenizer) == 60
    tokenizer.add_special_tokens({"additional_special_tokens": ["<late>"]})
    assert real_tokens(tokenizer) == 61


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
