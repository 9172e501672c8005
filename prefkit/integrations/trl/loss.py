"""The loss of one of TRL's batches, computed on the head's operands in the model's own forward."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.integrations.trl.acceleration import Acceleration
from prefkit.integrations.trl.batch import Scored, padded_inputs, read_by_model
from prefkit.integrations.trl.metrics import log_metrics, sums_of, zeros_of
from prefkit.integrations.trl.reference import HeadLost
from prefkit.integrations.trl.versions import deprecates_outputs, precompute_autocast
from prefkit.loss.fused import fused_preference_loss
from prefkit.loss.objective import Objective
from prefkit.model.head.fused import Balance, Request
from prefkit.model.router import load_balancing_loss
from prefkit_kernels import TokenStats, token_stats


def loss_of_batch(
    state: Acceleration,
    objective: Objective,
    model: nn.Module,
    inputs: Mapping[str, Any],
    return_outputs: bool,
) -> Any:
    """As TRL's `_compute_loss`: the loss (), with the model's output where it is asked for.

    Args:
        model: the wrapped policy.
        inputs: a batch on the device; `batch.WEIGHTS` may be among its keys.

    Raises:
        HeadLost: see there.
    """
    trainer, scored = state.trainer, Scored.of(inputs)
    asked: dict[str, Any] = {"prefkit_request": _request(state, objective, inputs, scored)}
    more: dict[str, Any] = {}
    if state.router is not None:
        more["output_router_logits"] = True
        asked["prefkit_balance"] = _balance(state, inputs)
    with read_by_model(inputs) as given:
        output = model(**given, **more, **asked)
    if getattr(output, "value", None) is None:
        raise HeadLost(model)
    log_metrics(trainer, inputs, output.extras)
    if not return_outputs:
        return output.value
    if deprecates_outputs():
        warnings.warn(
            "The logits that compute_metrics is given are made in a forward of their own. TRL "
            "deprecates them, and will remove them in 2.0.",
            FutureWarning,
            stacklevel=2,
        )
    with torch.no_grad():  # the logits that compute_metrics is given
        return output.value, model(**padded_inputs(inputs), **more)


def reference_sums(
    state: Acceleration, model: nn.Module, inputs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """As TRL's `compute_ref_log_probs`: (B,) Σ log p of each chosen and of each rejected side.

    Weighted, where the batch brings weights.
    """
    scored, alpha = Scored.of(inputs), state.trainer.ld_alpha
    with precompute_autocast(state.trainer):
        logp = _ref_logp(state, inputs, scored, model)
    tails = scored.tails(alpha)
    chosen, rejected = scored.weighted(logp if tails is None else logp * tails).chunk(2)
    return chosen, rejected


def _request(
    state: Acceleration, objective: Objective, inputs: Mapping[str, Any], scored: Scored
) -> Request:
    """What is computed on the policy's head: the loss, and sums for the metrics."""
    reference = _reference_terms(state, objective, inputs, scored)
    assert state.head is not None
    transform = state.head.transform
    of_nothing, names = _of_nothing(objective)

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        rows, here = scored.pick(hidden).to(weight.device), scored.to(weight.device)
        missing = (here.pairs - here.present()) * of_nothing / here.pairs
        if not len(here):  # as TRL: differences of 0, whose gradient is 0
            loss = rows.sum() + weight[:0].sum()
            return loss + missing, zeros_of(here, names)
        out = fused_preference_loss(
            rows,
            weight,
            here.targets,
            here.segments,
            objective=objective,
            weights=here.weights,
            num_pairs=here.pairs,
            pairs_in_call=here.pairs,
            lone_sides=True,  # as TRL: of a side that was cut away whole, the sums are 0
            num_scored=len(here),
            log_entropy=True,
            memory_budget=state.settings.memory_budget,
            bias=bias,
            logit_scale=transform.logit_scale,
            softcap=transform.softcap,
            **reference,
        )
        return out.loss + missing, sums_of(here, out, state.trainer.ld_alpha)

    return request


@functools.lru_cache(maxsize=8)
def _of_nothing(objective: Objective) -> tuple[float, tuple[str, ...]]:
    """Loss, and names of the metrics, of a pair of which nothing is scored: differences of 0."""
    stats = TokenStats(**dict.fromkeys(objective.outputs, torch.zeros(2)))
    found = objective(stats, torch.arange(2))
    return float(found.loss), tuple(found.metrics)


def _reference_terms(
    state: Acceleration, objective: Objective, inputs: Mapping[str, Any], scored: Scored
) -> dict[str, Any]:
    """What the loss reads of the reference, as keywords of `fused_preference_loss`."""
    trainer, head = state.trainer, state.head
    assert head is not None
    if not objective.needs_reference:
        return {}
    if trainer.precompute_ref_logps:
        sums = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return {"ref_logp": scored.spread(*sums, alpha=trainer.ld_alpha)}
    if objective.needs_kl:
        reference = state.reference()
        return reference.operands(inputs, scored, head.transform, head.vocab_size)  # type: ignore
    return {"ref_logp": _ref_logp(state, inputs, scored)}


def _ref_logp(
    state: Acceleration, inputs: Mapping[str, Any], scored: Scored, model: nn.Module | None = None
) -> Tensor:
    """(N,) log-probabilities under the reference."""
    reference = state.reference(model)
    transform = reference.head.transform

    def compute(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = token_stats(
            hidden,
            weight,
            scored.targets.to(weight.device),
            memory_budget=state.settings.memory_budget,
            bias=bias,
            logit_scale=transform.logit_scale,
            softcap=transform.softcap,
        )
        assert found.logp is not None
        return found.logp

    logp: Tensor = reference.run(inputs, scored, compute)
    return logp


def _balance(state: Acceleration, inputs: Mapping[str, Any]) -> Balance:
    """The routers' auxiliary loss of a batch, times its coefficient, as TRL adds it."""
    router, mask = state.router, inputs["attention_mask"]
    assert router is not None

    def balance(gates: Any) -> tuple[Tensor, dict[str, Tensor]]:
        rows, length = mask.shape
        longer = gates[0].numel() // gates[0].shape[-1] // rows - length  # virtual tokens count
        counts = torch.cat([mask.new_ones(rows, longer), mask], 1).flatten() == 1
        loss = load_balancing_loss(gates, router.top_k, counts)
        return state.trainer.router_aux_loss_coef * loss, {"aux_loss": loss.detach()}

    return balance
