"""The frozen reference: another model, a copy of the policy, or the policy with another adapter.

A policy with an adapter holds its reference within itself: the adapter is switched off, or, where
it has been trained, a frozen copy of it takes its place.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError
from prefkit.loss.objectives import Objective
from prefkit.model.adapters import (
    REFERENCE,
    changes_model,
    check_adapter,
    freeze_copy,
    put_reference,
)
from prefkit.model.causal import check_causal
from prefkit.model.evaluating import check_dtypes
from prefkit.model.fsdp_units import copy_without_weights, weights_elsewhere
from prefkit.model.head.fused import install, is_peft, unwrap
from prefkit.model.loading import base_of
from prefkit.model.reference.logp_cache import fingerprint_model
from prefkit.model.reference.policy import (
    Reference,
    check_tokenizers,
    check_transforms,
    check_vocabularies,
)
from prefkit.train.config import PreferenceConfig
from prefkit.train.models.dropout import disable_dropout
from prefkit.train.models.loading import load_named, name_of
from prefkit.train.models.quantised import keep_gradients
from prefkit.train.models.synced import check_alike


def make_reference(
    model: Any,
    ref_model: Any,
    objective: Objective,
    tokenizer: Any,
    args: PreferenceConfig,
    keywords: dict[str, Any],
) -> Reference | None:
    """The reference that the objective reads, or None where it reads none.

    Args:
        model: the policy, its adapter applied, its head not yet fused.
        ref_model: the user's reference, its name, or None.
        objective: decides whether a reference, and whether its whole distribution, is needed.
        tokenizer: the policy's tokenizer.
        args: `precompute_ref_log_probs` and `disable_dropout` are read.
        keywords: of `keywords_of`, for a reference given by name.

    Raises:
        ConfigError: a reference for an objective that reads none.
        ModelError: a reference that does not fit the policy.
    """
    if not objective.needs_reference:
        if ref_model is not None:
            raise ConfigError(
                f"ref_model is given, but method '{args.method}' as configured reads no reference. "
                "Leave ref_model out."
            )
        return None
    if isinstance(ref_model, str):
        if (beside := _beside(ref_model, model)) is not None:
            return beside
        own = {} if _same(ref_model, name_of(model)) else {"revision": None}  # the policy's
        ref_model = load_named(ref_model, args, {**keywords, **own})
    if ref_model is None and is_peft(model):
        return _within(model)
    if ref_model is None and args.precomputes_reference:
        return Reference(model, install(model))  # before the first step the policy is the reference
    frozen = ref_model
    if frozen is not None:
        keep_gradients(frozen)
        check_dtypes(unwrap(frozen), autocast=args.bf16 or args.fp16)
        check_causal(frozen)
    else:
        frozen = copy_without_weights(model) if weights_elsewhere() else copy.deepcopy(model)
    frozen.requires_grad_(False).eval()
    if args.disable_dropout:
        disable_dropout(frozen)
    reference = Reference(frozen, install(frozen))
    policy = install(model)
    check_vocabularies(policy, reference.head, len(tokenizer))
    if objective.needs_kl:
        check_transforms(policy, reference.head)
    if ref_model is not None:
        _check_ref_tokenizer(model, ref_model, tokenizer, args.trust_remote_code)
    if args.sync_ref_model:
        check_alike(model, frozen)
    return reference


def _beside(name: str, model: Any) -> Reference | None:
    """A reference given by name that the policy with its adapter holds within itself, or None.

    It is the policy's base model, or another adapter of it, which is put beside the policy's.
    """
    if not is_peft(model):
        return None
    base = base_of(name)
    if not _same(base or name, name_of(model)):
        return None
    check_adapter(model)
    if base is not None:
        put_reference(model, name)
    adapter = None if base is None else REFERENCE
    return Reference(model, install(model), adapter_owner=model, adapter=adapter)


def _same(one: str, other: str) -> bool:
    """Whether two names or folders are of the same model."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _within(model: Any) -> Reference:
    """The policy as it is now, by its adapter: off where it changes nothing, else copied."""
    check_adapter(model)
    trained = changes_model(model)
    if trained:
        freeze_copy(model)
    return Reference(
        model, install(model), adapter_owner=model, adapter=REFERENCE if trained else None
    )


def _check_ref_tokenizer(model: Any, ref_model: Any, tokenizer: Any, trust: bool) -> None:
    """Compares tokenizers where the reference's lies on this machine."""
    from transformers import AutoTokenizer

    name = name_of(ref_model)
    if not name or name in (name_of(model), tokenizer.name_or_path):
        return
    try:
        theirs = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=trust)
    except (OSError, ValueError):
        return  # saved without a tokenizer: the vocabulary sizes have been compared
    check_tokenizers(tokenizer, theirs)


def reference_fingerprint(reference: Reference | None, args: PreferenceConfig) -> str | None:
    """A hash of the reference and of the precision it runs in; None without a reference."""
    if reference is None or weights_elsewhere():  # then the first process tells it
        return None
    model = reference.model
    within = reference.adapter_owner is not None
    base = fingerprint_model(unwrap(model), without_adapter=within, but=reference.adapter)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "weights"
    return hashlib.sha256(f"{base}:{precision}".encode()).hexdigest()
