"""Which entries of a model's logits stand for which token, and whether two models mean the same by them."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_model(name: str, model: object) -> None:
    """Refuse what is no model of transformers."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{name} is {model!r:.60}; expected a model, such as load_checkpoint gives")


def logit_width(model: PreTrainedModel) -> int:
    """The size of a model's vocabulary axis, padding included."""
    return model.get_output_embeddings().weight.shape[0]


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase | None, *,
    but_special: bool = False, **models: PreTrainedModel,
) -> int:  # fmt: skip
    """Check that the teacher's tokens are the student's, and that every model has a logit for each.

    Returns the number of logits to compare, the highest token id plus one. What differs is a ValueError.

    Args:
        tokenizer: the student's.
        teacher_tokenizer: the teacher's; None where it is the student's.
        but_special: leave out special tokens. Where all others are the same, a student can take over its
            teacher's tokenizer, as R1-Distill's did: R1's special tokens replace some of their bases'.
        models: by the name they have in an error message.
    """
    for name, model in models.items():
        check_model(name, model)
    if teacher_tokenizer is not None:
        both = (tokenizer, teacher_tokenizer)
        ours, theirs = ({number: token for token, number in one.get_vocab().items()} for one in both)
        special = {number for one in both for number in one.added_tokens_decoder} if but_special else set()
        for number in sorted((ours.keys() | theirs.keys()) - special):
            if ours.get(number) != theirs.get(number):
                student, teacher = (
                    f"token {number} {one[number]!r}" if number in one else f"no token {number}"
                    for one in (ours, theirs)
                )
                raise ValueError(
                    f"teacher_tokenizer has {teacher} where tokenizer has {student}; logits are "
                    "compared token by token here: take a teacher of the same family, learn from its "
                    "texts (teacher=None), which any tokenizer can read, or let distill_language_model "
                    'compare pieces of text, with across_tokenizers="aligned"'
                )
    # Checkpoints pad the rest to a round number: of Qwen2.5's 151,665 tokens to 151,936 logits at 1.5B.
    real = max(tokenizer.get_vocab().values()) + 1
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

    A tokenizer without padding pads with its end, as R1-Distill's do. The model's configuration then names
    no padding, or `from_pretrained` would keep the embedding of that token from being trained.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = model.config.get_text_config()
    for settings in (config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token, known = getattr(tokenizer, name), getattr(settings, name, None)
            # Of several ends, all are kept if the tokenizer's is one of them.
            if token is not None and not (isinstance(known, list) and token in known):
                setattr(settings, name, token)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        config.pad_token_id = None
