"""Which entries of a model's logits stand for which token, and whether two models mean the same by them."""

from collections.abc import Set

from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "align_special_tokens", "check_same_ordinary_tokens", "check_same_tokens", "logit_width", "real_tokens",
]  # fmt: skip


def real_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of leading logits that belong to a token: the highest token id plus one.

    Checkpoints pad the rest to a round number: of Qwen2.5's 151,665 tokens to 151,936 logits at 1.5B.
    """
    return max(tokenizer.get_vocab().values()) + 1


def logit_width(model: PreTrainedModel) -> int:
    """The size of a model's vocabulary axis, padding included."""
    head = model.get_output_embeddings()
    return head.weight.shape[0] if head is not None else model.config.get_text_config().vocab_size


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    **models: PreTrainedModel,
) -> int:
    """Check that every model has a logit for each token, and that the teacher's tokens are the student's.

    Args:
        tokenizer: the student's.
        teacher_tokenizer: the teacher's; None where it is the student's.
        models: by the name they have in an error message.

    Returns:
        `real_tokens(tokenizer)`: the number of logits to compare.

    Raises:
        ValueError: naming the first token that differs, or the model that is too narrow.
    """
    if teacher_tokenizer is not None:
        _check_tokenizers(tokenizer, teacher_tokenizer)
    real = real_tokens(tokenizer)
    for name, model in models.items():
        if logit_width(model) < real:
            raise ValueError(
                f"{name} has {logit_width(model)} logits, but tokenizer has tokens up to id {real - 1}; "
                f"expected at least {real}: take the tokenizer it was built for, or call "
                f"{name}.resize_token_embeddings({real})"
            )
    return real


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's tokens for beginning, end and padding those of the tokenizer.

    Of several ends, all are kept if the tokenizer's is one of them. A tokenizer without padding pads with
    its end, as R1-Distill's do. The model's configuration then names no padding, or `from_pretrained` would
    keep the embedding of that token from being trained.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = model.config.get_text_config()
    for settings in (config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token, known = getattr(tokenizer, name), getattr(settings, name, None)
            if token is not None and not (isinstance(known, list) and token in known):
                setattr(settings, name, token)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        config.pad_token_id = None


def check_same_ordinary_tokens(
    tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that a student can take over its teacher's tokenizer: all but special tokens are the same.

    R1-Distill's students did: they have the tokens of their bases, with R1's special ones in place of some.

    Raises:
        ValueError: naming the first ordinary token that differs.
    """
    special = {*tokenizer.added_tokens_decoder, *teacher_tokenizer.added_tokens_decoder}
    _check_tokenizers(tokenizer, teacher_tokenizer, special)


def _check_tokenizers(
    tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase,
    special: Set[int] = frozenset(),
) -> None:  # fmt: skip
    def token(tokens: dict[int, str], number: int) -> str:
        return f"token {number} {tokens[number]!r}" if number in tokens else f"no token {number}"

    ours, theirs = (
        {number: word for word, number in each.get_vocab().items()} for each in (tokenizer, teacher_tokenizer)
    )
    for number in sorted((ours.keys() | theirs.keys()) - special):
        if ours.get(number) != theirs.get(number):
            raise ValueError(
                f"teacher_tokenizer has {token(theirs, number)} where tokenizer has {token(ours, number)}; "
                "logits can only be compared token by token: take a teacher of the same family, or learn "
                "from its texts (teacher=None), which any tokenizer can read"
            )
