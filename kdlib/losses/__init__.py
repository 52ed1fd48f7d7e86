"""The distillation losses. Read `kdlib.losses.kd` first.

Not imported here: `kdlib.losses.linear`, which marks its loss for torch.compile and so imports all of that.
"""

from kdlib.losses.cross_tokenizer import aligned_loss, uld_loss
from kdlib.losses.divergences import (
    adaptive_kl_divergence,
    jensen_shannon_divergence,
    kl_divergence,
    skew_kl_divergence,
    total_variation_distance,
)
from kdlib.losses.kd import kd_loss, soft_target_loss, soften
from kdlib.losses.top_k import TopK, top_k_loss, top_k_of

__all__ = [
    "TopK", "adaptive_kl_divergence", "aligned_loss", "jensen_shannon_divergence", "kd_loss", "kl_divergence",
    "skew_kl_divergence", "soft_target_loss", "soften", "top_k_loss", "top_k_of", "total_variation_distance",
    "uld_loss",
]
