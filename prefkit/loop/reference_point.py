"""The reference point z0 of KTO: where a response counts as neither better nor worse."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prefkit.errors import ConfigError
from prefkit.loop.forward import ask_head
from prefkit.loss.objectives import Objective
from prefkit.model.head.fused import Head
from prefkit.model.reference.policy import Reference
from prefkit_kernels import token_stats

_NO_RESPONSES = (
    "kto estimates its reference point from mismatched responses, which the batch does not bring. "
    "In a loop of your own give the pairs theirs, prefkit.data.with_mismatched(dataset.pairs), "
    "before prefkit.data.PairCollator takes them; in PreferenceTrainer the data_collator leaves "
    "`mismatched` out. Or do without: KTO(reference_point=False), reference_point: false."
)
_NO_REFERENCE = (
    "kto estimates its reference point from mismatched responses, which the reference has to read "
    "as well: ref_logp is of the batch's own responses alone. Drop ref_logp and give the reference "
    "itself, or do without: KTO(reference_point=False), reference_point: false."
)


def point_of(
    model: nn.Module,
    batch: Mapping[str, Any],
    objective: Objective,
    head: Head,
    reference: Reference | None,
    **options: Any,
) -> Tensor | None:
    """() z0: the mean over all processes' mismatched responses of Σ w·(logp − ref_logp), at least
    0; None where the loss has none.

    Args:
        model: the wrapped policy.
        batch: brings `mismatched`, a batch of responses beside other prompts.
        objective: says whether there is one.
        head: the policy's.
        reference: that of the loss.
        options: `memory_budget` and `backend` of `token_stats`.

    Raises:
        ConfigError: the batch brings no mismatched responses, or there is no reference to run.

    All processes of the default group must call it, each with responses of its own.
    """
    if not objective.needs_reference_point:
        return None
    beside = batch.get("mismatched")
    if beside is None:
        raise ConfigError(_NO_RESPONSES)
    if reference is None:
        raise ConfigError(_NO_REFERENCE)
    positions, targets = beside["positions"], beside["targets"]
    options = {**options, "num_scored": len(positions)}

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        stats = token_stats(
            hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions),
            weight,
            targets,
            bias=bias,
            **head.transform.options,
            **options,
        )
        assert stats.logp is not None
        return stats.logp.sum(), {"logp": stats.logp}

    with torch.no_grad():
        output = ask_head(model, beside, request, head)
    ref_logp = reference.logp(beside, positions, targets, **options)
    ratio = (output.extras or {})["logp"].detach() - ref_logp
    responses = ratio.new_tensor(float(len(beside["pair_index"])))
    sums = torch.stack([(beside["weights"] * ratio).sum(), responses])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).clamp(min=0)
