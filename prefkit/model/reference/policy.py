"""The reference policy, in each of its forms, as the loss wants it.

| who is the reference | full-vocabulary KL | log-probabilities only |
| --- | --- | --- |
| a frozen model | its hidden states and head | its log-probs |
| the policy with its adapter off | the same | the same |
| the policy with a frozen adapter in its adapter's place | the same | the same |
| a cache on disk (`reference_cache`) | refused | read from the batch |

The reference always runs without gradient, in evaluation mode, and only the hidden states of scored
tokens leave its forward. Of a reference sharded by FSDP2 the head stays gathered while the loss
needs it, which is on; everything else is freed after each forward.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from prefkit.errors import ModelError
from prefkit.model.attention.install import reading
from prefkit.model.evaluating import evaluating
from prefkit.model.fsdp_units import adapter_chosen, adapter_off, outliving, release, unit_of
from prefkit.model.head.fused import Head, LogitTransform
from prefkit.model.reference.head import ReferenceHead
from prefkit_kernels import token_stats

ModelInputs = Mapping[str, Any]  # a PairBatch, or what a model reads of it
Compute = Callable[[Tensor, Tensor, Tensor | None], Any]


@dataclass
class Reference:
    """A reference that can be run.

    Attributes:
        model: the module to call (prepared, possibly wrapped), with the fused head installed.
        head: its head.
        adapter_owner: the PEFT model whose adapter is switched off around the call, or None.
        adapter: of that model, the one in use around the call instead; None = none is.
    """

    model: nn.Module
    head: Head
    adapter_owner: Any = None
    adapter: str | None = None
    _held: FSDPModule | None = field(default=None, init=False, repr=False)

    def run(self, inputs: ModelInputs, positions: Tensor, compute: Compute) -> Any:
        """compute(hidden (T, D), weight (V, D), bias (V,) | None) inside the model's forward.

        Autocast is on there. Units of FSDP2 are freed after it, but for the one that is held.
        """
        got: list[Any] = []

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
            got.append(compute(hidden, weight, bias))
            return hidden[:0], {}

        with evaluating(self.model), self.adapted(), reading(inputs) as model_inputs:
            self.model(**model_inputs, prefkit_request=request)
        if self.adapter_owner is None:  # the policy itself would have to gather it again at once
            release(self.model, self._held)
        return got[0]

    def adapted(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the policy's model is the reference, where it is one."""
        if self.adapter_owner is None:
            return contextlib.nullcontext()
        if self.adapter is None:
            return adapter_off(self.adapter_owner)
        return adapter_chosen(self.adapter_owner, self.adapter)

    def operands(
        self, inputs: ModelInputs, positions: Tensor, policy: LogitTransform, vocab_size: int
    ) -> dict[str, Tensor | None]:
        """Keyword arguments `ref_hidden`, `ref_weight`, `ref_bias` of the loss.

        Args:
            inputs: the batch.
            positions: (T,) int64, of the scored tokens in the flattened R·L.
            policy: the policy's logit transform, which the loss applies to both.
            vocab_size: rows of the policy's head.

        Raises:
            ModelError: the head's memory was freed when the model's forward ended.
        """
        if self.adapter_owner is None and self._held is None:
            self._hold_head()
        keep = outliving if self.adapter_owner is None else (lambda value: value)
        hidden, weight, bias = self.run(
            inputs, positions, lambda hidden, *head: (hidden, *map(keep, head))
        )
        # With the adapter off, the weight is the policy's own, and freed memory is as it should be:
        # the policy's forward gathers it into the same tensor again before the loss reads it.
        if self.adapter_owner is None and not weight.untyped_storage().size():
            raise ModelError(
                "The reference's head was freed when its forward ended, but the full-vocabulary KL "
                "reads it in the policy's loss. Shard the reference with FSDP2 (fully_shard; "
                "fsdp_version 2 in accelerate), or use a method without KL (dpo, step-dpo, scdpo)."
            )
        head = ReferenceHead.of(self.head, policy, vocab_size, weight, bias)
        return head.operands(hidden)

    def _hold_head(self) -> None:
        """Lets FSDP2 leave the head gathered after every forward, if the head is sharded.

        The loss reads the head in the policy's forward and, in two passes, in its backward. Leaving
        the gathered weight where it is costs no copy, and no gathering in later steps: a reference
        never changes. The most memory is taken in the loss, where this head is needed anyway.
        """
        self._held = unit_of(self.model, self.head.module)
        if self._held is not None:
            self._held.set_reshard_after_forward(False, recurse=False)

    def logp(
        self, inputs: ModelInputs, positions: Tensor, targets: Tensor, **options: Any
    ) -> Tensor:
        """(T,) log-probabilities of `targets` in nats, fp32 (fp64 for an fp64 model).

        Args:
            inputs, positions: as in `operands`.
            targets: (T,) int64, the token that each position predicts.
            options: `memory_budget`, `backend` of `token_stats`.
        """
        transform = self.head.transform

        def compute(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            stats = token_stats(
                hidden,
                weight,
                targets,
                bias=bias,
                **transform.options,
                **options,
            )
            assert stats.logp is not None
            return stats.logp

        return self.run(inputs, positions, compute)


def check_vocabularies(policy: Head, reference: Head, tokens: int) -> None:
    """Refuses a reference that cannot speak of the policy's tokens.

    Args:
        policy, reference: the two heads.
        tokens: size of the tokenizer's vocabulary.

    Raises:
        ModelError: heads of different size, unless the difference is padding beyond the tokenizer.
    """
    sizes = policy.vocab_size, reference.vocab_size
    if sizes[0] != sizes[1] and min(sizes) < tokens:
        raise ModelError(
            f"The reference model has {sizes[1]} tokens in its head, the policy {sizes[0]}, and the"
            f" tokenizer {tokens}: they do not share a vocabulary. Use a reference of the same "
            "family and tokenizer."
        )


def check_transforms(policy: Head, reference: Head) -> None:
    """Refuses a KL between a model with a softcap and one with another softcap.

    Raises:
        ModelError: the two softcaps differ.
    """
    if policy.transform.softcap != reference.transform.softcap:
        raise ModelError(
            f"The policy caps its logits at {policy.transform.softcap}, the reference at "
            f"{reference.transform.softcap}: the KL of TDPO needs the same softcap. Use a reference"
            " of the same architecture, or a method without KL (dpo, step-dpo, scdpo, cdpo)."
        )


def check_tokenizers(policy: Any, reference: Any) -> None:
    """Refuses a reference whose tokenizer gives other ids than the policy's.

    Args:
        policy, reference: two tokenizers of transformers.

    Raises:
        ModelError: a token has another id in the reference's vocabulary.
    """
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    differing = [token for token, index in ours.items() if theirs.get(token, index) != index]
    missing = len(ours.keys() ^ theirs.keys())
    if differing or missing > max(len(ours), len(theirs)) // 100:
        example = differing[0] if differing else next(iter(ours.keys() ^ theirs.keys()))
        raise ModelError(
            f"The reference model has another tokenizer than the policy ({len(differing)} tokens "
            f"with another id, {missing} in one of the two only; for example {example!r}). Its "
            "log-probabilities would be of other text. Use a reference with the same tokenizer."
        )
