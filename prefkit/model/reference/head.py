"""The head of a reference, as the loss reads it: the policy's scale, the policy's vocabulary.

A reference that runs hands it over with its hidden states (`prefkit.model.reference.policy`); of
one whose hidden states are cached (`prefkit.model.reference.hidden_cache`) it is all that stays in
memory.
"""

from dataclasses import dataclass

from torch import Tensor

from prefkit.model.head.fused import Head, LogitTransform


@dataclass(frozen=True)
class ReferenceHead:
    """The head of a reference as the loss reads it beside the policy's.

    Attributes:
        weight: (V, D), without gradient. bias: (V,) or None.
        factor: what the hidden states are multiplied with, where the policy scales its logits
            otherwise than the reference does.
    """

    weight: Tensor
    bias: Tensor | None
    factor: float

    @classmethod
    def of(
        cls,
        head: Head,
        policy: LogitTransform,
        vocab_size: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> "ReferenceHead":
        """The head alone: everything else of its model may be freed afterwards.

        Args:
            head: the reference's.
            policy: the policy's logit transform, which the loss applies to both.
            vocab_size: rows of the policy's head: rows beyond are padding, and left out.
            weight, bias: the head's, gathered, where it is sharded; None = the module's own.
        """
        if weight is None:
            weight, bias = head.module.weight.detach(), getattr(head.module, "bias", None)  # type: ignore
        assert weight is not None
        factor = head.transform.logit_scale / policy.logit_scale
        bias = None if bias is None else bias.detach() * factor
        # A longer head is longer by padding (`check_vocabularies`): rows that no text can hold, and
        # that the policy, lacking them, would make an infinite KL. Only then: a weight that FSDP2
        # has freed until the policy's forward gathers it again cannot be sliced.
        if weight.shape[0] > vocab_size:
            weight = weight[:vocab_size]
            bias = None if bias is None else bias[:vocab_size]
        return cls(weight, bias, factor)

    def of_cached(self, hidden: Tensor) -> dict[str, Tensor | None]:
        """`operands` of states that come from a disk: on any device, in any float dtype."""
        return self.operands(hidden.to(self.weight.device, self.weight.dtype, non_blocking=True))

    def operands(self, hidden: Tensor) -> dict[str, Tensor | None]:
        """Keyword arguments `ref_hidden`, `ref_weight`, `ref_bias` of the loss.

        Args:
            hidden: (T, D) the reference's final hidden states of the scored tokens.
        """
        # The loss knows one scale: the difference is folded into the hidden states.
        hidden = hidden if self.factor == 1.0 else hidden * self.factor
        return {"ref_hidden": hidden, "ref_weight": self.weight, "ref_bias": self.bias}
