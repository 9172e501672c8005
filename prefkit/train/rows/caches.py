"""The reference computed before training: its log-probabilities or its hidden states, on disk."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from prefkit.data.batch.collators import Layout
from prefkit.data.pair import PairBatch, TokenizedPair
from prefkit.errors import ConfigError
from prefkit.model.head.fused import Head
from prefkit.model.reference.cache_folder import is_complete
from prefkit.model.reference.head import ReferenceHead
from prefkit.model.reference.hidden_cache import build_hidden_cache
from prefkit.model.reference.logp_cache import build_cache
from prefkit.model.reference.policy import Reference
from prefkit.train.config import PreferenceConfig
from prefkit.train.rows.datasets import CachedDataset, pair_of, plain

logger = logging.getLogger(__name__)

BySide = list[tuple[Tensor, Tensor]]
TOO_LATE = (
    "These rows have no precomputed reference, and the reference is gone: it was freed, or it was "
    "the model before its first step. Give them to the trainer as eval_dataset from the start, "
    "evaluate on them once before training (without ref_model), or leave precompute_ref_log_probs "
    "and precompute_ref_hidden out."
)


def attach_cache(
    dataset: Any,
    name: str,
    reference: Reference,
    collator: Any,
    args: PreferenceConfig,
    model_fingerprint: str | None,
    layout: Layout = "padded",
    moved: bool = False,
) -> CachedDataset:
    """Completes or loads the cache of what the options ask for, and puts it beside each pair.

    Args:
        dataset: tokenised pairs.
        name: the cache's folder in `ref_cache_dir`: "train", "eval", "eval_NAME", or `name_of`.
        reference: computes what is missing.
        collator: makes a `PairBatch` of pairs.
        args: `precompute_ref_hidden` asks for hidden states, otherwise log-probabilities.
        model_fingerprint: of the reference and its precision.
        layout: of the run's rows: in trees a new cache holds each token once.
        moved: the reference has been trained since: a cache is only loaded.

    Raises:
        ConfigError: the folder holds the cache of another model or of other rows, its disk cannot
            hold the hidden states, or a reference that has moved would have to compute.
    """
    if isinstance(dataset, CachedDataset):
        return dataset
    folder = _folder(name, args)
    pairs = [pair_of(dataset[i]) for i in range(len(dataset))]
    common: dict[str, Any] = {
        "model_fingerprint": model_fingerprint or "",
        "batch_size": args.precompute_ref_batch_size or args.per_device_eval_batch_size,
        "once": layout == "tree",
    }
    compute = _too_late if moved else _by_side(_kept_of(reference, args), collator, reference)
    if not args.precompute_ref_hidden:
        return CachedDataset(dataset, build_cache(folder, pairs, compute, **common))
    weight: Tensor = reference.head.module.weight  # type: ignore[assignment]
    cache = build_hidden_cache(
        folder,
        pairs,
        compute,
        width=weight.shape[1],
        dtype=torch.bfloat16 if args.bf16 else weight.dtype,  # what the head multiplies in
        say=logger.warning,
        **common,
    )
    return CachedDataset(dataset, cache)


def _folder(name: str, args: PreferenceConfig) -> Path:
    root = Path(args.ref_cache_dir) if args.ref_cache_dir else Path(args.output_dir) / "ref_cache"  # type: ignore[arg-type]
    return root / (f"{name}_hidden" if args.precompute_ref_hidden else name)


def is_cached(name: str, args: PreferenceConfig) -> bool:
    """Whether the cache of a name is there with all its shards."""
    return is_complete(_folder(name, args))


def name_of(dataset: Any) -> str:
    """The cache's folder of rows that come when the run is set up: the same for the same tokens."""
    return f"rows_{plain(dataset).fingerprint[:16]}"


def _too_late(pairs: Sequence[TokenizedPair]) -> BySide:
    raise ConfigError(TOO_LATE)


def _kept_of(reference: Reference, args: PreferenceConfig) -> Callable[[PairBatch], Tensor]:
    """Of a batch's T scored tokens: (T,) fp32 log-probabilities or (T, D) hidden states."""
    transform, vocab = reference.head.transform, reference.head.vocab_size

    def logp(batch: PairBatch) -> Tensor:
        options = {"memory_budget": args.memory_budget, "backend": args.head_backend}
        return reference.logp(batch, batch["positions"], batch["targets"], **options).float()

    def hidden(batch: PairBatch) -> Tensor:
        operands = reference.operands(batch, batch["positions"], transform, vocab)
        assert operands["ref_hidden"] is not None
        return operands["ref_hidden"]

    return hidden if args.precompute_ref_hidden else logp


def _by_side(
    compute: Callable[[PairBatch], Tensor], collator: Any, reference: Reference
) -> Callable[[Sequence[TokenizedPair]], BySide]:
    """The same for pairs, cut into what belongs to each chosen and each rejected side."""
    device = next(reference.model.parameters()).device

    # Rows of any length may follow one another here: the layout's own padding and packing serve.
    def sides(pairs: Sequence[TokenizedPair]) -> BySide:
        batch = send_to_device(collator(pairs), device)
        sizes = torch.bincount(batch["segments"], minlength=2 * len(pairs)).tolist()
        values = compute(batch)
        if (index := batch.get("token_index")) is not None:
            values = values[index]
        found = values.cpu().split(sizes)
        return list(zip(found[::2], found[1::2], strict=True))

    return sides


def kept_head(reference: Reference, policy: Head) -> ReferenceHead:
    """The reference's head, to stay when the rest of it is freed."""
    with reference.adapted():
        weight: Tensor = reference.head.module.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(reference.head.module, "bias", None)
    if weight.requires_grad:  # the policy as it is before training, whose head is about to change
        weight = weight.detach().clone()
        bias = None if bias is None else bias.detach().clone()
    return ReferenceHead.of(reference.head, policy.transform, policy.vocab_size, weight, bias)
