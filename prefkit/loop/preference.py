"""`preference_loss`: a wrapped model and a batch in, the preference loss out, in any loop.

    model(…, prefkit_request) → hidden states and head, inside the forward → fused loss → out

Nothing is computed outside of the forward of the model as it is wrapped. What DDP, FSDP, ZeRO-3,
autocast, PEFT and torch.compile do there is done for the loss as it is for logits.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from prefkit.errors import ConfigError
from prefkit.loop.forward import ask_head
from prefkit.loop.items import groups_of
from prefkit.loop.reference_point import point_of
from prefkit.loop.references import causal_head, reference_of, reference_terms
from prefkit.loss.fused import PreferenceLoss, fused_preference_loss
from prefkit.loss.objective import Objective
from prefkit.model.head.fused import Balance, Head, RequestOutput
from prefkit.model.reference.policy import Reference

TOKENS = "tokens"  # beside the metrics that a forward brings: over how many tokens some are means


def preference_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    objective: Objective,
    reference: nn.Module | Reference | None = None,
    num_pairs: int | Tensor | None = None,
    *,
    passes: str = "auto",
    memory_budget: int | None = None,
    backend: str = "auto",
    log_entropy: bool = False,
) -> PreferenceLoss:
    """The preference loss of a batch, computed inside the model's own forward.

    Args:
        model: the causal LM that trains, in whatever wraps it (DDP, FSDP, DeepSpeed, accelerate,
            Fabric, torch.compile, PEFT): the object that you would call for logits. Softcap, scale
            and bias are the model's.
        batch: of `prefkit.data.PairCollator` or `prefkit.stream_of`, on the model's device:
            `input_ids` (R, L), `positions`, `targets` (N,), `segments` (T,) and what else a
            `prefkit.data.PairBatch` holds.
        objective: `DPO(…)`, `DPOP(…)`, `TDPO(…)`, `SimPO(…)`, `ORPO(…)` or `KTO(…)`.
        reference: a frozen model, wrapped as it needs to be. None: `ref_logp` (N,) of the batch
            (see `reference_logp`), else a PEFT model with its adapter switched off. It runs without
            gradient, and only at the scored positions reaches a head.
        num_pairs: divisor of the mean over pairs (responses with `KTO`); None = those of this
            batch, `prefkit.items_of(batch, objective)`. When gradients are accumulated: the sum of
            that over the whole optimiser step. Where a wrapper averages over processes: that of all
            processes together, divided by the number of processes.
        passes, memory_budget, backend, log_entropy: see `fused_preference_loss`.

    Returns:
        PreferenceLoss: `.loss` to call `backward` on, `.metrics` of this process's pairs under
        TRL's names, `.stats` the per-token quantities.

    Raises:
        ValueError: a batch without scored positions; a reference that is missing, or given twice
            or to an objective that reads none; and what `fused_preference_loss` refuses.
        ModelError: a head that cannot be fused (`prefkit.install`); a model that is not causal; an
            adapter without which the model is no frozen reference.
    """
    _check_batch(batch)
    head = causal_head(model)
    options: dict[str, Any] = {"memory_budget": memory_budget, "backend": backend}
    found = _reference(model, batch, objective, reference)
    terms = reference_terms(batch, objective, head, found, **options)
    if terms is None:
        raise ValueError(
            f"{type(objective).__name__} needs a reference: give reference=, a frozen model, or "
            "ref_logp (N,) in the batch (prefkit.reference_logp makes it). Only a PEFT model is "
            "its own, with the adapter switched off"
        )
    kept: list[PreferenceLoss] = []
    output = ask_preference(
        model,
        batch,
        objective,
        head,
        terms,
        num_pairs=num_pairs,
        reference_point=point_of(model, batch, objective, head, found, **options),
        kept=kept,
        passes=passes,
        log_entropy=log_entropy,
        **options,
    )
    assert output.value is not None
    return replace(kept[0], loss=output.value)


def reference_logp(
    reference: nn.Module, batch: Mapping[str, Any], memory_budget: int | None = None
) -> Tensor:
    """(N,) log-probabilities in nats of a batch's targets, without gradient, to be cached.

    `batch["ref_logp"] = reference_logp(reference, batch)` and the reference may be freed.

    Args:
        reference: the model as it is: a PEFT model with its adapter, unless you switch that off
            (`with model.disable_adapter():`).
        batch: as in `preference_loss`.
        memory_budget: bytes for logits; see `token_stats`.

    Raises:
        ValueError, ModelError: as in `preference_loss`.
    """
    _check_batch(batch)
    targets = batch["targets"]
    options = {"memory_budget": memory_budget, "num_scored": len(targets)}
    return Reference(reference, causal_head(reference)).logp(
        batch, batch["positions"], targets, **options
    )


def ask_preference(
    model: nn.Module,
    batch: Mapping[str, Any],
    objective: Objective,
    head: Head,
    terms: Mapping[str, Any],
    *,
    num_pairs: int | Tensor | None = None,
    sequence_group: dist.ProcessGroup | None = None,
    reference_point: Tensor | None = None,
    balance: Balance | None = None,
    kept: list[PreferenceLoss] | None = None,
    **options: Any,
) -> RequestOutput:
    """One forward of the policy: `value` is the loss, `extras` the metrics and `loss`, detached.

    Args:
        model, batch, objective, num_pairs: as in `preference_loss`.
        head: the policy's.
        terms: keywords of `reference_terms`.
        sequence_group: processes that share the batch's row; see `fused_preference_loss`.
        reference_point: () of `prefkit.loop.reference_point.point_of`, or None.
        balance: of `ask_head`.
        kept: gets what the fused loss returned.
        options: `passes` and `log_entropy` of `fused_preference_loss`, `memory_budget` and
            `backend`.

    Raises:
        ConfigError: the batch lacks margins or groups that the objective needs.
    """
    positions, targets = batch["positions"], batch["targets"]
    margins = _margins_of(batch) if objective.needs_margins else None
    groups = groups_of(batch) if objective.needs_groups else None

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        out = fused_preference_loss(
            hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions),
            weight,
            targets,
            batch["segments"],
            objective=objective,
            weights=batch.get("weights"),
            num_pairs=num_pairs,
            pairs_in_call=len(batch["pair_index"]) if "pair_index" in batch else None,
            sequence_group=sequence_group,
            num_scored=batch.get("num_scored"),
            margins=margins,
            groups=groups,
            reference_point=reference_point,
            token_index=batch.get("token_index"),
            one_sided=batch.get("one_sided", False),
            bias=bias,
            **head.transform.options,
            **terms,
            **options,
        )
        if kept is not None:
            kept.append(out)
        return out.loss, {**out.metrics, "loss": out.loss.detach(), TOKENS: out.tokens}

    return ask_head(model, batch, request, head, balance)


def _margins_of(batch: Mapping[str, Any]) -> Tensor:
    if batch.get("margins") is None:
        raise ConfigError(
            "margin_weight is set, but the batch brings no margins: its pairs were prepared "
            "without them, or the data_collator leaves them out. Prepare the pairs with "
            "ReadOptions(margins=True), and give margins (B,) in each batch."
        )
    return batch["margins"]


def _check_batch(batch: Mapping[str, Any]) -> None:
    missing = [
        name for name in ("input_ids", "positions", "targets", "segments") if name not in batch
    ]
    if missing:
        raise ValueError(
            f"the batch has no {' and no '.join(missing)}: give one of prefkit.data.PairCollator, "
            "or make it of a padded batch with prefkit.stream_of(batch, order=...)"
        )
    if not len(batch["positions"]) or batch.get("num_scored") == 0:
        raise ValueError(
            "the batch has no scored token, so there is no loss of it. Other processes that call "
            "their model now would wait for this one: leave the step out in all of them, or give "
            "each a pair (drop_last=True, or a sampler that pads)"
        )


def _reference(
    model: nn.Module,
    batch: Mapping[str, Any],
    objective: Objective,
    given: nn.Module | Reference | None,
) -> Reference | None:
    """The reference to run, if any; refuses one that would not be read."""
    if given is not None and not objective.needs_reference:
        name = type(objective).__name__
        raise ValueError(f"{name} as it is set reads no reference: leave it out")
    if given is not None and "ref_logp" in batch:
        raise ValueError("the batch brings ref_logp: leave reference out, or drop what is cached")
    cached = "ref_logp" in batch or not objective.needs_reference
    return None if cached else reference_of(model, given)
