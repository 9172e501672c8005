"""The frozen reference: another model, a copy of the policy, or the policy without adapter."""

import copy
import hashlib
from typing import Any

from prefkit.errors import ConfigError
from prefkit.loss.objectives import Objective
from prefkit.model.causal import check_causal
from prefkit.model.evaluating import check_dtypes
from prefkit.model.fsdp_units import copy_without_weights, weights_elsewhere
from prefkit.model.head.fused import install, is_peft, unwrap
from prefkit.model.reference.logp_cache import fingerprint_model
from prefkit.model.reference.policy import (
    Reference,
    check_adapter,
    check_tokenizers,
    check_transforms,
    check_vocabularies,
)
from prefkit.train.config import PreferenceConfig
from prefkit.train.models.dropout import disable_dropout


def make_reference(
    model: Any, ref_model: Any, objective: Objective, tokenizer: Any, args: PreferenceConfig
) -> Reference | None:
    """The reference that the objective reads, or None where it reads none.

    Args:
        model: the policy, its adapter applied, its head not yet fused.
        ref_model: the user's reference or None.
        objective: decides whether a reference, and whether its whole distribution, is needed.
        tokenizer: the policy's tokenizer.
        args: `precompute_ref_log_probs` and `disable_dropout` are read.

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
    if ref_model is None and is_peft(model):
        check_adapter(model)
        return Reference(model, install(model), adapter_owner=model)
    if ref_model is None and args.precomputes_reference:
        return Reference(model, install(model))  # before the first step the policy is the reference
    frozen = ref_model
    if frozen is not None:
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
        _check_ref_tokenizer(model, ref_model, tokenizer)
    return reference


def _check_ref_tokenizer(model: Any, ref_model: Any, tokenizer: Any) -> None:
    """Compares tokenizers where the reference's lies on this machine."""
    from transformers import AutoTokenizer

    name = getattr(unwrap(ref_model).config, "name_or_path", "")
    if not name or name in (unwrap(model).config.name_or_path, tokenizer.name_or_path):  # type: ignore[union-attr]
        return
    try:
        theirs = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return  # saved without a tokenizer: the vocabulary sizes have been compared
    check_tokenizers(tokenizer, theirs)


def reference_fingerprint(reference: Reference | None, args: PreferenceConfig) -> str | None:
    """A hash of the reference and of the precision it runs in; None without a reference."""
    if reference is None or weights_elsewhere():  # then the first process tells it
        return None
    model = reference.model
    base = fingerprint_model(unwrap(model), without_adapter=reference.adapter_owner is not None)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "weights"
    return hashlib.sha256(f"{base}:{precision}".encode()).hexdigest()
