"""The reference's hidden states of scored tokens, computed once and kept on disk.

The KL of TDPO needs the reference's whole distribution at each scored token. That is its last
hidden state times its head: V numbers from D. So D numbers a token are kept on disk, the head stays
in memory, and the rest of the reference is needed no more.

    FOLDER/shard-00000.safetensors  hidden (scored tokens, D), end to end: pair by pair, chosen
                                    first, in the order of a batch's `rows`

It is large: 8,192 numbers of 2 bytes a scored token are 164 GB for 10,000 pairs of 1,000.
The size is said, and the free space looked at, before anything is computed. Reading maps the file
and copies the rows of one pair; the cache as a whole is never in memory. Manifest, shards and
resuming: `prefkit.model.reference.cache_folder`. Shards are checked by size and origin; their
values are not read again to look for rot of the disk.
"""

import logging
import shutil
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError
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
from prefkit.model.reference.fingerprints import fingerprint_pairs

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
        starts: 2 · pairs + 1 numbers: the token at which each response begins, over all shards.
        first_pairs: the first pair of each shard.
        width: D.
        dtype: of what is stored and read.
    """

    folder: Path
    starts: tuple[int, ...]
    first_pairs: tuple[int, ...]
    width: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.starts) // 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        shard = bisect_right(self.first_pairs, index) - 1
        first = self.starts[2 * self.first_pairs[shard]]
        a, b, c = (start - first for start in self.starts[2 * index : 2 * index + 3])
        with safe_open(shard_path(self.folder, shard), framework="pt") as file:
            # The slice is a view of the mapped file. A copy, because whoever sends a view to
            # another process (a data loader's worker) would send all of the file.
            rows = file.get_slice(_KEY)[a:c].clone()
        return rows[: b - a], rows[b - a :]

    def read(self, pair_index: Tensor) -> Tensor:
        """(T, D) rows of some pairs end to end: those of a batch with this `pair_index` (B,)."""
        sides = [side for index in pair_index.tolist() for side in self[index]]
        return torch.cat(sides) if sides else torch.empty(0, self.width, dtype=self.dtype)


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

    Raises:
        ConfigError: the folder holds something else; the disk lacks the space. Nothing has been
            computed then.
        PrefkitError: hidden states that are not finite; a disk that is full all the same.
        ValueError: `compute` gives other shapes than asked for.
    """
    counts = scored_counts(pairs)
    starts = tuple(accumulate(counts, initial=0))
    firsts = tuple(_first_pairs(counts, width * dtype.itemsize))
    cache = HiddenCache(folder, starts, firsts, width, dtype)
    wanted = _manifest(cache, pairs, model_fingerprint)
    start_manifest(folder, wanted)
    progress = Progress(tokens_of(pairs), f"Reference {_NAME}", " tokens")
    missing = _missing(cache, pairs, model_fingerprint, progress)
    needed = sum(starts[2 * last] - starts[2 * first] for _, first, last, _ in missing)
    _check_space(cache, needed * width * dtype.itemsize, say)
    with progress:
        for shard, first, last, origin in missing:
            part = pairs_slice(pairs, first, last)
            sides = compute_sides(part, compute, batch_size, dtype, _NAME, progress)
            _check_shapes(sides, counts[2 * first : 2 * last], width)
            write_shard(shard_path(folder, shard), {_KEY: torch.cat(sides)}, origin)
    finish_manifest(folder, wanted)
    return cache


def _manifest(
    cache: HiddenCache, pairs: Sequence[TokenizedPair], model: str
) -> dict[str, str | int]:
    """What the folder has to say of itself to be this cache."""
    return {
        "kind": _NAME,
        "version": 1,
        "model": model,
        "pairs": fingerprint_pairs(pairs),
        "bytes_a_shard": BYTES_A_SHARD,
        "dtype": str(cache.dtype),
        "width": cache.width,
    }


def _first_pairs(counts: list[int], bytes_a_token: int) -> list[int]:
    """The first pair of each shard: as many pairs as `BYTES_A_SHARD` holds, at least one."""
    firsts: list[int] = []
    size = 0
    for pair, rows in enumerate(a + b for a, b in zip(counts[::2], counts[1::2], strict=True)):
        if not firsts or size + rows * bytes_a_token > BYTES_A_SHARD:
            firsts.append(pair)
            size = 0
        size += rows * bytes_a_token
    return firsts


def _missing(
    cache: HiddenCache, pairs: Sequence[TokenizedPair], model: str, progress: Progress
) -> list[tuple[int, int, int, str]]:
    """(shard, its first pair, the pair after its last, its origin) of shards still to be made."""
    missing = []
    for shard, (first, last) in enumerate(pairwise([*cache.first_pairs, len(pairs)])):
        part = pairs_slice(pairs, first, last)
        origin = f"{model}:{fingerprint_pairs(part)}"
        tokens = cache.starts[2 * last] - cache.starts[2 * first]
        path = shard_path(cache.folder, shard)
        if _is_whole(path, [tokens, cache.width], cache.dtype, origin):
            progress.skip(tokens_of(part))
        else:
            missing.append((shard, first, last, origin))
    return missing


def _check_shapes(sides: list[Tensor], counts: list[int], width: int) -> None:
    """A row too many would shift all that follow it, and nothing would look wrong."""
    for side, count in zip(sides, counts, strict=True):
        if tuple(side.shape) != (count, width):
            raise ValueError(
                f"compute gave hidden states of shape {tuple(side.shape)} for a side of {count} "
                f"scored tokens and width {width}"
            )


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
    tokens, bytes_a_token = cache.starts[-1], cache.width * cache.dtype.itemsize
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
