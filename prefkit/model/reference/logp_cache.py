"""Reference log-probabilities, one a scored token, computed once and kept on disk.

    FOLDER/shard-00000.safetensors  logp (float32, rows of some units end to end), counts (rows of
                                    each), and whose they are (hash of model and these pairs)

Manifest, shards and resuming: `prefkit.model.reference.cache_folder`; which row belongs to which
token: `prefkit.model.reference.kept_rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prefkit.data.pair import TokenizedPair
from prefkit.files.progress import Progress
from prefkit.model.reference.cache_folder import (
    BY_QUESTION,
    FORMAT,
    ComputeFn,
    Values,
    compute_units,
    finish_manifest,
    is_kept_by_question,
    shard_path,
    start_manifest,
    tokens_of,
    write_shard,
)
from prefkit.model.reference.fingerprints import fingerprint_model
from prefkit.model.reference.kept_rows import KeptRows, kept_by_pair, kept_by_question

__all__ = ["ReferenceCache", "build_cache", "fingerprint_model"]

PAIRS_A_SHARD = 256
_NAME = "log-probabilities"


@dataclass(frozen=True)
class ReferenceCache:
    """A complete cache in memory: `cache[i]` gives both responses of pair i, each (tokens,)
    fp32."""

    logp: Tensor  # (rows,) float32
    kept: KeptRows

    def __len__(self) -> int:
        return len(self.kept.counts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        both, chosen = self.take(self.rows(index)), int(self.kept.counts[index, 0])
        return both[:chosen], both[chosen:]

    def rows(self, index: int) -> np.ndarray:
        """(t,) int64 rows of the scored tokens of pair `index`, chosen first."""
        return self.kept.rows(index)

    def take(self, rows: np.ndarray) -> Tensor:
        """(n,) float32 log-probabilities of some rows."""
        return self.logp[torch.from_numpy(rows)]


def build_cache(
    folder: Path,
    pairs: Sequence[TokenizedPair],
    score: ComputeFn,
    *,
    model_fingerprint: str,
    batch_size: int,
    once: bool = False,
) -> ReferenceCache:
    """Completes the cache in `folder` (or finds it complete) and loads it.

    Args:
        folder: the cache's own folder.
        pairs: all pairs, in the order of the dataset.
        score: log-probabilities (nats) of the scored tokens of a few pairs.
        model_fingerprint: of the reference, with its precision.
        batch_size: pairs a call of `score`.
        once: a new cache keeps each scored token of a question once, however many pairs use it.

    Raises:
        ConfigError: the folder holds a cache of another model or of other pairs.
        PrefkitError: the reference gives NaN or infinite log-probabilities; the disk is full.
    """
    by_question = is_kept_by_question(folder, once)
    kept = kept_by_question(pairs) if by_question else kept_by_pair(pairs)
    wanted: dict[str, Any] = {
        "version": FORMAT,
        "model": model_fingerprint,
        "pairs": kept.fingerprint(pairs),
        "pairs_a_shard": PAIRS_A_SHARD,
        **({"kept": BY_QUESTION} if by_question else {}),
    }
    start_manifest(folder, wanted)
    values = Values(score, _NAME, torch.float32, (), batch_size)
    parts = []
    with Progress(tokens_of(pairs), f"Reference {_NAME}", " tokens") as progress:
        for shard, units in enumerate(_shards(kept)):
            path, origin = shard_path(folder, shard), f"{model_fingerprint}:"
            origin += kept.fingerprint(pairs, units)
            counts = _counts(kept, units)
            logp = _read_shard(path, counts, origin)
            if logp is None:
                logp = compute_units(pairs, kept, units, values, progress)
                write_shard(path, {"logp": logp, "counts": torch.tensor(counts)}, origin)
            else:
                some = [pairs[i] for unit in units for i in kept.units[unit]]
                progress.skip(tokens_of(some))
            parts.append(logp)
    finish_manifest(folder, wanted)
    return ReferenceCache(torch.cat(parts) if parts else torch.empty(0), kept)


def _shards(kept: KeptRows) -> list[range]:
    """The units of each shard: as many as have `PAIRS_A_SHARD` pairs, at least one."""
    shards, pairs = list[range](), 0
    for unit, members in enumerate(kept.units):
        if not shards or pairs + len(members) > PAIRS_A_SHARD:
            shards.append(range(unit, unit))
            pairs = 0
        shards[-1] = range(shards[-1].start, unit + 1)
        pairs += len(members)
    return shards


def _counts(kept: KeptRows, units: range) -> list[int]:
    """What a shard says of its sizes: rows of each side, or of each question."""
    if kept.local is None:
        return kept.counts[units.start : units.stop].flatten().tolist()
    return np.diff(kept.firsts[units.start : units.stop + 1]).tolist()


def _read_shard(path: Path, expected: list[int], origin: str) -> Tensor | None:
    """A shard's log-probabilities, or None when it is absent, broken or of another origin."""
    try:
        with safe_open(path, framework="pt") as shard:
            if (shard.metadata() or {}).get("origin") != origin:
                return None
            logp, counts = shard.get_tensor("logp"), shard.get_tensor("counts")
    except (FileNotFoundError, SafetensorError, OSError):
        return None
    whole = counts.tolist() == expected and logp.numel() == sum(expected)
    return logp if whole and bool(torch.isfinite(logp).all()) else None
