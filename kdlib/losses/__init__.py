"""The distillation losses. Read `kdlib.losses.kd` first."""

from kdlib.losses.divergences import jensen_shannon_divergence, kl_divergence
from kdlib.losses.kd import kd_loss, soft_target_loss, soften
from kdlib.losses.linear import LossTerms, chunk_tokens, linear_kd_loss
from kdlib.losses.top_k import TopK, top_k_loss, top_k_of

__all__ = [
    "LossTerms", "TopK", "chunk_tokens", "jensen_shannon_divergence", "kd_loss", "kl_divergence",
    "linear_kd_loss", "soft_target_loss", "soften", "top_k_loss", "top_k_of",
]
