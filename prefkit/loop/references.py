"""What a loop may give as its reference, and what the loss reads of it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from prefkit.loss.objectives import Objective
from prefkit.model.adapters import check_adapter
from prefkit.model.causal import check_causal
from prefkit.model.head.fused import Head, install, peft_model_of, unwrap
from prefkit.model.reference.head import ReferenceHead
from prefkit.model.reference.policy import Reference, check_transforms


def reference_of(model: nn.Module, given: nn.Module | Reference | None) -> Reference | None:
    """The reference that a loop names, ready to be run; None where there is only a cache, if that.

    Args:
        model: the policy, in its wrappers.
        given: a frozen model in its own wrappers; None or the policy itself: the policy with its
            adapter switched off, if it has one.

    Raises:
        ValueError: the policy itself, without an adapter.
        ModelError: an adapter without which the model is no frozen reference; a head that cannot be
            fused; a model that is not causal.
    """
    if isinstance(given, Reference):
        return given
    if given is not None and unwrap(given) is not unwrap(model):
        return Reference(given, causal_head(given))
    adapter_owner = peft_model_of(model)
    if adapter_owner is not None:
        check_adapter(adapter_owner)
        return Reference(model, install(model), adapter_owner=adapter_owner)
    if given is not None:
        raise ValueError(
            "the reference is the policy itself, so every reward would be 0: give another model "
            "with the weights from before training, for example copy.deepcopy(model) before the "
            "first step"
        )
    return None


def causal_head(model: nn.Module) -> Head:
    """The head of a model, which is tried for causality as soon as its weights are there.

    Raises:
        ModelError: of `install` and `check_causal`.
    """
    head = install(model)
    if "_prefkit_causal" not in head.owner.__dict__ and check_causal(model):
        head.owner._prefkit_causal = True  # type: ignore[assignment]
    return head


def reference_terms(
    batch: Mapping[str, Any],
    objective: Objective,
    head: Head,
    reference: Reference | None,
    kept: ReferenceHead | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """What the loss reads of the reference, as keywords of `fused_preference_loss`.

    What the batch brings of it is read; else the reference is run, on the batch's own rows.

    Args:
        batch: a `PairBatch` on the device, with `ref_logp` or `ref_hidden` where they are cached.
        objective: decides whether log-probabilities are enough.
        head: the policy's.
        reference: can be run; or None.
        kept: what is left of a reference whose hidden states the batch brings; or None.
        options: `memory_budget` and `backend` of `token_stats`.

    Returns:
        The keywords; None where the objective needs a reference and there is nothing of it.

    Raises:
        ModelError: a KL between two models with different softcaps; a reference whose head is freed
            when its forward ends.
    """
    if not objective.needs_reference:
        return {}
    if "ref_logp" in batch:
        return {"ref_logp": batch["ref_logp"]}
    if "ref_hidden" in batch and kept is not None:
        return kept.of_cached(batch["ref_hidden"])
    if reference is None:
        return None
    positions = batch["positions"]
    if objective.needs_kl:
        check_transforms(head, reference.head)
        return reference.operands(batch, positions, head.transform, head.vocab_size)
    # Every position has a target: nothing to look for.
    options = {**options, "num_scored": len(positions)}
    return {"ref_logp": reference.logp(batch, positions, batch["targets"], **options)}
