"""Reference log-probabilities, one a scored token, computed once and kept on disk.

    FOLDER/shard-00000.safetensors  logp (float32, scored tokens end to end), counts (tokens a
                                    side), and whose they are (hash of model and these pairs)

Manifest, shards and resuming: `prefkit.model.reference.cache_folder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prefkit.data.pair import TokenizedPair
from prefkit.files.progress import Progress
from prefkit.model.reference.cache_folder import (
    ComputeFn,
    compute_sides,
    finish_manifest,
    pairs_slice,
    scored_counts,
    shard_path,
    start_manifest,
    tokens_of,
    write_shard,
)
from prefkit.model.reference.fingerprints import fingerprint_model, fingerprint_pairs

__all__ = ["ReferenceCache", "build_cache", "fingerprint_model"]

PAIRS_A_SHARD = 256
_NAME = "log-probabilities"


@dataclass(frozen=True)
class ReferenceCache:
    """A complete cache in memory: `cache[i]` gives both responses of pair i, each (tokens,)
    fp32."""

    logp: Tensor  # (total scored tokens,) float32
    starts: Tensor  # (2 · pairs + 1,) int64: where each side begins

    def __len__(self) -> int:
        return (len(self.starts) - 1) // 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        a, b, c = self.starts[2 * index : 2 * index + 3].tolist()
        return self.logp[a:b], self.logp[b:c]


def build_cache(
    folder: Path,
    pairs: Sequence[TokenizedPair],
    score: ComputeFn,
    *,
    model_fingerprint: str,
    batch_size: int,
) -> ReferenceCache:
    """Completes the cache in `folder` (or finds it complete) and loads it.

    Args:
        folder: the cache's own folder.
        pairs: all pairs, in the order of the dataset.
        score: log-probabilities (nats) of the scored tokens of a few pairs.
        model_fingerprint: of the reference, with its precision.
        batch_size: pairs a call of `score`.

    Raises:
        ConfigError: the folder holds a cache of another model or of other pairs.
        PrefkitError: the reference gives NaN or infinite log-probabilities; the disk is full.
    """
    wanted = {
        "version": 1,
        "model": model_fingerprint,
        "pairs": fingerprint_pairs(pairs),
        "pairs_a_shard": PAIRS_A_SHARD,
    }
    start_manifest(folder, wanted)
    logps, counts = [], []
    with Progress(tokens_of(pairs), f"Reference {_NAME}", " tokens") as progress:
        for shard, start in enumerate(range(0, len(pairs), PAIRS_A_SHARD)):
            part = pairs_slice(pairs, start, start + PAIRS_A_SHARD)
            path, mark = shard_path(folder, shard), fingerprint_pairs(part)
            loaded = _read_shard(path, scored_counts(part), f"{model_fingerprint}:{mark}")
            if loaded is None:
                sides = compute_sides(part, score, batch_size, torch.float32, _NAME, progress)
                loaded = torch.cat(sides), torch.tensor([len(side) for side in sides])
                values = {"logp": loaded[0], "counts": loaded[1]}
                write_shard(path, values, f"{model_fingerprint}:{mark}")
            else:
                progress.skip(tokens_of(part))
            logps.append(loaded[0])
            counts.append(loaded[1])
    finish_manifest(folder, wanted)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
    return ReferenceCache(torch.cat(logps) if logps else torch.empty(0), starts)


def _read_shard(path: Path, expected: list[int], origin: str) -> tuple[Tensor, Tensor] | None:
    """A shard's (logp, counts), or None when it is absent, broken or of another origin."""
    try:
        with safe_open(path, framework="pt") as shard:
            if (shard.metadata() or {}).get("origin") != origin:
                return None
            logp, counts = shard.get_tensor("logp"), shard.get_tensor("counts")
    except (FileNotFoundError, SafetensorError, OSError):
        return None
    whole = counts.tolist() == expected and logp.numel() == sum(expected)
    return (logp, counts) if whole and bool(torch.isfinite(logp).all()) else None
