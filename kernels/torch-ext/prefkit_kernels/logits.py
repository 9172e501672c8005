"""What happens to a logit between the matrix product and the softmax.

    raw_v   = ⟨hidden, weight_v⟩ + bias_v
    logit_v = softcap · tanh(logit_scale · raw_v / softcap) / temperature

Scale first, then softcap, then temperature: Cohere and Granite have the first, Gemma-2 the second,
sampling code the third. A class whose bias is −inf is masked and stays masked under a softcap.
"""

from dataclasses import dataclass

OUTPUTS = ("logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq")
DIFFERENTIABLE = ("logp", "kl", "reverse_kl", "entropy", "log_sum_sq")
NEEDS_REFERENCE = ("ref_logp", "kl", "reverse_kl")
# Sums over classes, once the normalisers are known.
SUMS = ("kl", "reverse_kl", "entropy", "log_sum_sq")
KLS = frozenset({"kl", "reverse_kl"})


@dataclass(frozen=True)
class LogitTransform:
    """Scale, softcap and temperature of the logits; `softcap` 0.0 means none."""

    scale: float = 1.0
    softcap: float = 0.0
    temperature: float = 1.0

    @property
    def identity(self) -> bool:
        return self.scale == 1.0 and self.softcap == 0.0 and self.temperature == 1.0
