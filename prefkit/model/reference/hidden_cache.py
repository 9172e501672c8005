"""The reference's hidden states of scored tokens, computed once and kept on disk.

The KL of TDPO needs the reference's whole distribution at each scored token. That is its last
hidden state times its head: V numbers from D. So D numbers a token are kept on disk, the head stays
in memory, and the rest of the reference is needed no more.

    FOLDER/shard-00000.safetensors  hidden (scored tokens, D) of some pairs, or of the trees of some
                                    questions (`prefkit.model.reference.kept_rows`)

It is large: 8,192 numbers of 2 bytes a scored token are 164 GB for 10,000 pairs of 1,000.
The size is said, and the free space looked at, before anything is computed. Reading maps the file
and copies the rows of one pair; the cache as a whole is never in memory. Manifest, shards and
resuming: `prefkit.model.reference.cache_folder`. Shards are checked by size and origin; their
values are not read again to look for rot of the disk.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError
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
from prefkit.model.reference.kept_rows import KeptRows, kept_by_pair, kept_by_question

logger = logging.getLogger(__name__)

# A shard is in memory while it is written (twice, for a moment), and lost by a kill.
BYTES_A_SHARD = 256 << 20
_NAME = "hidden states"
_KEY = "hidden"


@dataclass(frozen=True)
class HiddenCache:
    """A complete cache on disk: `cache[i]` reads both responses of pair i, each (tokens, D).

    It holds no open file and no values, so workers of a data loader may have copies.

    Attributes:
        folder: where the shards are.
        kept: which row belongs to which token.
        shards: the units of each shard.
        width: D.
        dtype: of what is stored and read.
    """

    folder: Path
    kept: KeptRows
    shards: tuple[range, ...]
    width: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.kept.counts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        both = self.take(self.rows(index))
        chosen = int(self.kept.counts[index, 0])
        return both[:chosen], both[chosen:]

    @property
    def first_pairs(self) -> tuple[int, ...]:
        """The first pair of each shard."""
        return tuple(self.kept.units[units.start][0] for units in self.shards)

    def rows(self, index: int) -> np.ndarray:
        """(t,) int64 rows of the scored tokens of pair `index`, chosen first."""
        return self.kept.rows(index)

    def take(self, rows: np.ndarray) -> Tensor:
        """(n, D) hidden states of some rows, in their order; what lies together is read at once."""
        distinct, back = np.unique(rows, return_inverse=True)
        found = torch.empty(len(distinct), self.width, dtype=self.dtype)
        bounds = np.array([self.kept.firsts[units.start] for units in self.shards] + [1 << 62])
        for shard in np.unique(np.searchsorted(bounds, distinct, side="right") - 1).tolist():
            here = np.flatnonzero((bounds[shard] <= distinct) & (distinct < bounds[shard + 1]))
            with safe_open(shard_path(self.folder, shard), framework="pt") as file:
                kept = file.get_slice(_KEY)
                for run in np.split(here, np.flatnonzero(np.diff(distinct[here]) > 1) + 1):
                    first = int(distinct[run[0]] - bounds[shard])
                    # The slice is a view of the mapped file: copied, since whoever sends a view to
                    # another process (a data loader's worker) would send all of the file.
                    found[run[0] : run[-1] + 1] = kept[first : first + len(run)]
        same = len(rows) == len(distinct) and bool((back == np.arange(len(back))).all())
        return found if same else found[torch.from_numpy(back)]


def build_hidden_cache(
    folder: Path,
    pairs: Sequence[TokenizedPair],
    compute: ComputeFn,
    *,
    width: int,
    dtype: torch.dtype,
    model_fingerprint: str,
    batch_size: int,
    say: Callable[[str], None] = logger.info,
    once: bool = False,
) -> HiddenCache:
    """Completes the cache in `folder`, or finds it complete.

    Args:
        folder: the cache's own folder.
        pairs: all pairs, in the order of the dataset.
        compute: (tokens, D) final hidden states, as they enter the head, of the scored tokens'
            predicting positions: chosen and rejected of a few pairs.
        width: D of the reference.
        dtype: kept on disk. What the head multiplies in loses nothing: bfloat16 under bf16
            autocast or with a bf16 model. Rounding float32 states to bfloat16 halves the size and
            moves each KL (docs/long_context.md has measurements).
        model_fingerprint: of the reference, with its precision.
        batch_size: pairs a call of `compute`.
        say: receives the size, before anything is computed.
        once: a new cache keeps each scored token of a question once, however many pairs use it.

    Raises:
        ConfigError: the folder holds something else; the disk lacks the space. Nothing has been
            computed then.
        PrefkitError: hidden states that are not finite; a disk that is full all the same.
        ValueError: `compute` gives other shapes than asked for.
    """
    by_question = is_kept_by_question(folder, once)
    kept = kept_by_question(pairs) if by_question else kept_by_pair(pairs)
    shards = tuple(_shards(kept, width * dtype.itemsize))
    cache = HiddenCache(folder, kept, shards, width, dtype)
    wanted = _manifest(cache, pairs, model_fingerprint, by_question)
    start_manifest(folder, wanted)
    progress = Progress(tokens_of(pairs), f"Reference {_NAME}", " tokens")
    missing = _missing(cache, pairs, model_fingerprint, progress)
    needed = sum(_rows_of(kept, units) for _, units, _ in missing)
    _check_space(cache, needed * width * dtype.itemsize, say)
    values = Values(compute, _NAME, dtype, (width,), batch_size)
    with progress:
        for shard, units, origin in missing:
            states = compute_units(pairs, kept, units, values, progress)
            write_shard(shard_path(folder, shard), {_KEY: states}, origin)
    finish_manifest(folder, wanted)
    return cache


def _manifest(
    cache: HiddenCache, pairs: Sequence[TokenizedPair], model: str, by_question: bool
) -> dict[str, str | int]:
    """What the folder has to say of itself to be this cache."""
    return {
        "kind": _NAME,
        "version": FORMAT,
        "model": model,
        "pairs": cache.kept.fingerprint(pairs),
        "bytes_a_shard": BYTES_A_SHARD,
        "dtype": str(cache.dtype),
        "width": cache.width,
        **({"kept": BY_QUESTION} if by_question else {}),
    }


def _shards(kept: KeptRows, bytes_a_token: int) -> list[range]:
    """The units of each shard: as many as `BYTES_A_SHARD` holds, at least one."""
    shards, size = list[range](), 0
    for unit, rows in enumerate(np.diff(kept.firsts).tolist()):
        if not shards or size + rows * bytes_a_token > BYTES_A_SHARD:
            shards.append(range(unit, unit))
            size = 0
        shards[-1] = range(shards[-1].start, unit + 1)
        size += rows * bytes_a_token
    return shards


def _rows_of(kept: KeptRows, units: range) -> int:
    return int(kept.firsts[units.stop] - kept.firsts[units.start])


def _missing(
    cache: HiddenCache, pairs: Sequence[TokenizedPair], model: str, progress: Progress
) -> list[tuple[int, range, str]]:
    """(shard, its units, its origin) of shards still to be made."""
    missing = []
    for shard, units in enumerate(cache.shards):
        origin = f"{model}:{cache.kept.fingerprint(pairs, units)}"
        shape = [_rows_of(cache.kept, units), cache.width]
        if _is_whole(shard_path(cache.folder, shard), shape, cache.dtype, origin):
            progress.skip(tokens_of([pairs[i] for unit in units for i in cache.kept.units[unit]]))
        else:
            missing.append((shard, units, origin))
    return missing


def _is_whole(path: Path, shape: list[int], dtype: torch.dtype, origin: str) -> bool:
    """Whether a shard is there, of the right size and origin; its values are not read."""
    try:
        with safe_open(path, framework="pt") as shard:  # refuses a file shorter than it should be
            if (shard.metadata() or {}).get("origin") != origin:
                return False
            rows = shard.get_slice(_KEY)
            return rows.get_shape() == shape and rows[:0].dtype == dtype
    except (FileNotFoundError, SafetensorError, OSError):
        return False


def _check_space(cache: HiddenCache, needed: int, say: Callable[[str], None]) -> None:
    """Says how large the cache is, and refuses a disk that cannot hold what is missing."""
    tokens, bytes_a_token = int(cache.kept.firsts[-1]), cache.width * cache.dtype.itemsize
    free = shutil.disk_usage(cache.folder).free
    size = f"{_readable(tokens * bytes_a_token)} ({tokens:,} scored tokens of {bytes_a_token:,} B)"
    say(
        f"Reference {_NAME}: {size} in {cache.folder}, {_readable(needed)} of it still to be "
        f"computed; {_readable(free)} are free there."
    )
    if needed > free:
        raise ConfigError(
            f"precompute_ref_hidden: the reference's hidden states take {size}, and "
            f"{_readable(needed)} of it are missing, but {cache.folder} has {_readable(free)} of "
            "free space. Choose a ref_cache_dir on a larger disk, train on fewer or shorter pairs, "
            "or leave precompute_ref_hidden out (the reference then runs in every step)."
        )


def _readable(count: int) -> str:
    size, units = float(count), iter(("KB", "MB", "GB", "TB"))
    unit = "B"
    while size >= 999.95 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
