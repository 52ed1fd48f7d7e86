"""How long a text a model can read: beyond, one with learned positions fails, and others lose the thread."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel


def positions_of(model: PreTrainedModel) -> int | None:
    """Tokens of the longest text that a model was made for; None where its configuration does not say."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    # YaRN and its like stretch rotary embeddings; some checkpoints name the length before that.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    before, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(positions, int(before * factor)) if positions and before and factor else positions


def check_positions(
    name: str, lengths: Sequence[int], models: Mapping[str, PreTrainedModel], **more: int
) -> None:
    """Refuse texts that are longer than a model's positions.

    Args:
        name: of the argument that holds the texts. lengths: of each, in tokens.
        models: by the names of their arguments.
        more: tokens that are added to each, by the name of the argument.
    """
    extra = sum(more.values())
    for who, model in models.items():
        positions = positions_of(model)
        too_long = [n for n, length in enumerate(lengths) if positions and length + extra > positions]
        if too_long:
            worst = max(too_long, key=lambda number: lengths[number])
            added = "".join(f" beside {key}={value:,}" for key, value in more.items())
            raise ValueError(
                f"{name}[{worst}] takes {lengths[worst]:,} tokens{added}, but {who} has {positions:,} "
                f"positions; leave out or shorten the {len(too_long):,} of {len(lengths):,} that are too long"
            )
