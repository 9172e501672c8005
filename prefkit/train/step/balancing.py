"""The routers' load-balancing loss as part of a training loss, as TRL adds it."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import ConfigError
from prefkit.model.head.fused import Balance, unwrap
from prefkit.model.router import Router, experts_of, find_router, load_balancing_loss

logger = logging.getLogger(__name__)


def router_of_run(model: nn.Module, args: Any) -> Router | None:
    """The routers whose balance this run trains; where experts have none, one line says so.

    Args:
        model: the policy, not yet wrapped for several processes.
        args: `router_aux_loss_coef` and the options of activation checkpointing are read.

    Raises:
        ModelError: see `find_router`.
        ConfigError: reentrant checkpointing, under which routers would get no gradient of it.
    """
    router, reason = find_router(model, args.router_aux_loss_coef)
    owner: Any = unwrap(model)
    if router is None:
        if count := experts_of(owner.config.get_text_config()):
            logger.warning(
                "There is no auxiliary loss of the routers in this run (%s): nothing keeps the %d "
                "experts evenly used.",
                reason,
                count,
            )
        return None
    if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ConfigError(
            "gradient_checkpointing_kwargs has use_reentrant, under which the routers get no "
            "gradient of their auxiliary loss. Leave use_reentrant out, or set "
            "router_aux_loss_coef to 0."
        )
    return router


def balance_of(
    router: Router | None, inputs: Mapping[str, Any], steps: int, group: Any = None
) -> Balance | None:
    """What a forward adds to its loss for the balance of a batch's tokens; None without routers.

    Args:
        router: of `router_of_run`.
        inputs: the batch. Padding and filling tokens do not count; a shared prefix counts once.
        steps: batches of the accumulation window: the loss is a mean over them.
        group: processes that hold pieces of the batch's row.

    Returns:
        A function whose second result is `aux_loss`, the batch's own, without the coefficient.
    """
    if router is None:
        return None

    def balance(gates: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = load_balancing_loss(gates, router.top_k, _counted(inputs), group)
        return router.coefficient / steps * loss, {"aux_loss": loss.detach()}

    return balance


def _counted(inputs: Mapping[str, Any]) -> Tensor | None:
    """(N,) which tokens of the batch are text; None = all."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        return mask.flatten() == 1
    ids = inputs["input_ids"]
    if (real := inputs.get("num_tokens", ids.numel())) == ids.numel():
        return None
    return torch.arange(ids.numel(), device=ids.device) < real  # what fills a row is at its end
