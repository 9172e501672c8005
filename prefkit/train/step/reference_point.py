"""z0, the reference point of KTO: what policy and reference make of mismatched responses."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prefkit.errors import ConfigError
from prefkit.train.config import PreferenceConfig
from prefkit.train.models.run_models import RunModels
from prefkit.train.step.forward import ask_head
from prefkit_kernels import token_stats


@torch.no_grad()
def reference_point(
    model: nn.Module, inputs: Mapping[str, Any], models: RunModels, args: PreferenceConfig
) -> Tensor:
    """() z0: the mean over mismatched responses of Σ w·(logp − ref_logp), at least 0.

    Over those of all processes.

    Args:
        model: the wrapped policy.
        inputs: a `PairBatch` on the device, with its `mismatched`.
        models: of the run.
        args: `memory_budget` and `head_backend` are read.

    Raises:
        ConfigError: the batch has no mismatched responses, or there is no reference to read them.
    """
    batch, reference = inputs.get("mismatched"), models.reference
    if batch is None or reference is None:
        raise ConfigError(
            "kto estimates its reference point from mismatched responses, which the batch does "
            "not bring: the data_collator leaves `mismatched` out. Take "
            "prefkit.data.PairCollator, or set reference_point: false."
        )
    positions, targets = batch["positions"], batch["targets"]
    transform = models.head.transform
    options: dict[str, Any] = {
        "memory_budget": args.memory_budget,
        "backend": args.head_backend,
        "num_scored": len(positions),
    }

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        stats = token_stats(
            hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions),
            weight,
            targets,
            bias=bias,
            logit_scale=transform.logit_scale,
            softcap=transform.softcap,
            **options,
        )
        assert stats.logp is not None
        return stats.logp.sum(), {"logp": stats.logp}

    output = ask_head(model, batch, request, models.head)
    ratio = (output.extras or {})["logp"] - reference.logp(batch, positions, targets, **options)
    responses = ratio.new_tensor(float(len(batch["pair_index"])))
    sums = torch.stack([(batch["weights"] * ratio).sum(), responses])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).clamp(min=0)
