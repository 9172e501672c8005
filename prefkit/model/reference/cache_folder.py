"""What every cache of reference values is made of: a manifest, shards, and a loop that fills them.

    FOLDER/manifest.json            what it was computed from; "complete" once all shards are there
    FOLDER/shard-00000.safetensors  values of the scored tokens of some pairs (`kept_rows`)

Shards are written one after another, each atomically, so a killed run continues where it stopped.
A cache is used only where its fingerprint (model, precision, token ids, scored flags) is the
present one: anything else is refused by name, never half used.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError, PrefkitError
from prefkit.files.atomic import replace_file, write_json
from prefkit.files.progress import Progress
from prefkit.model.reference.kept_rows import KeptRows

MANIFEST = "manifest.json"
FORMAT = 1  # of what a folder holds; a folder of another one is refused
Sides = tuple[Tensor, Tensor]  # of one pair: chosen, rejected
BY_QUESTION = "by question"  # in a manifest, of a cache that keeps each token once
ComputeFn = Callable[[Sequence[TokenizedPair]], list[Sides]]
_MEANINGS = {
    "kind": "of other values (log-probabilities, hidden states)",
    "version": "by another version of prefkit",
    "model": "with another reference model, adapter or precision",
    "pairs": "for other rows, another tokenizer or other data options",
    "kept": "with its tokens in another order",
    "pairs_a_shard": "with another shard size",
    "bytes_a_shard": "with another shard size",
    "dtype": "in another dtype",
    "width": "with another hidden size",
}


def start_manifest(folder: Path, wanted: dict[str, Any]) -> None:
    """Starts a manifest, or refuses a folder that holds another cache.

    Args:
        folder: the cache's own folder.
        wanted: what the cache is computed from, under the names of `_MEANINGS`.

    Raises:
        ConfigError: the folder holds something else.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if folder.is_dir() and any(folder.glob("shard-*.safetensors")):
            raise ConfigError(
                f"{folder}: reference cache without its {MANIFEST}, so nobody can tell what it "
                "belongs to. Delete the folder or choose another ref_cache_dir."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**wanted, "complete": False})
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: broken ({error}). Delete the folder {folder}.") from error
    for key, meaning in _MEANINGS.items():
        if found.get(key) != wanted.get(key):
            raise ConfigError(
                f"{folder}: this reference cache was computed {meaning}. Delete the folder or "
                "choose another ref_cache_dir."
            )


def is_complete(folder: Path) -> bool:
    """Whether a cache, of whatever, is there with all its shards."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finish_manifest(folder: Path, wanted: dict[str, Any]) -> None:
    """Says that all shards are there."""
    write_json(folder / MANIFEST, {**wanted, "complete": True})


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor], origin: str) -> None:
    """Writes a shard atomically.

    Args:
        path: where.
        tensors: what.
        origin: whose values they are, checked when it is read.

    Raises:
        PrefkitError: the disk is full or fails.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata={"origin": origin})
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise PrefkitError(
            f"{path} cannot be written ({error}). Make room and start again: what is there is kept,"
            " and the run continues after it."
        ) from error
    replace_file(temporary, path)


def is_kept_by_question(folder: Path, wanted: bool) -> bool:
    """How a cache that is there keeps its tokens; `wanted` where none is, or none that can tell."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(found.get("kept") == BY_QUESTION)
    except (OSError, ValueError, AttributeError):
        return wanted


@dataclass(frozen=True)
class Values:
    """What a cache keeps.

    Attributes:
        compute: values of the scored tokens of a few pairs.
        name: in words.
        dtype: of a value. width: numbers a token, () = one.
        batch_size: pairs a call of `compute`.
    """

    compute: ComputeFn
    name: str
    dtype: torch.dtype
    width: tuple[int, ...]
    batch_size: int


def compute_units(
    pairs: Sequence[TokenizedPair], kept: KeptRows, units: range, values: Values, progress: Progress
) -> Tensor:
    """(rows, …) the values of some units in the order of the cache, on the CPU.

    Args:
        pairs: all pairs.
        kept: where their tokens lie.
        units: numbers of units.
        values: what is kept.
        progress: counts tokens.

    Raises:
        PrefkitError: a value that is not finite, in its dtype.
        ValueError: `compute` gives other shapes than asked for.
    """
    order = [pair for unit in units for pair in kept.units[unit]]
    first, last = int(kept.firsts[units.start]), int(kept.firsts[units.stop])
    found = torch.empty((last - first, *values.width), dtype=values.dtype)
    if kept.local is None:  # pairs of like length together: less padding
        order.sort(key=lambda i: -max(len(pairs[i].chosen.ids), 1))
    else:
        order = _needed(order, kept, first, last)
    done = 0
    for start in range(0, len(order), values.batch_size):
        chunk = order[start : start + values.batch_size]
        some = [pairs[i] for i in chunk]
        for i, both in zip(chunk, values.compute(some), strict=True):
            _check_shapes(both, kept.counts[i], values)
            sides = [side.to("cpu", values.dtype) for side in both]
            if not all(bool(torch.isfinite(side).all()) for side in sides):
                raise PrefkitError(
                    f"{pairs[i].source}: row {pairs[i].row}: the reference model gives "
                    f"{values.name} that are not finite. Check the reference in float32, or leave "
                    "the row out."
                )
            found[torch.from_numpy(kept.rows(i) - first)] = torch.cat(sides)
        progress.add(tokens_of(some))
        done += tokens_of(some)
    progress.skip(tokens_of([pairs[i] for unit in units for i in kept.units[unit]]) - done)
    return found


def _needed(order: list[int], kept: KeptRows, first: int, last: int) -> list[int]:
    """The pairs, in this order, of which some token is in none before it."""
    there = np.zeros(last - first, dtype=bool)
    needed = []
    for pair in order:
        rows = kept.rows(pair) - first
        if not there[rows].all():
            there[rows] = True
            needed.append(pair)
    return needed


def _check_shapes(sides: Sides, counts: np.ndarray, values: Values) -> None:
    """A row too many would shift all that follow it, and nothing would look wrong."""
    for side, count in zip(sides, counts.tolist(), strict=True):
        if tuple(side.shape) != (count, *values.width):
            raise ValueError(
                f"compute gave {values.name} of shape {tuple(side.shape)} for a side of {count} "
                f"scored tokens and width {values.width}"
            )


def tokens_of(pairs: Sequence[TokenizedPair]) -> int:
    """Tokens of both sequences of some pairs."""
    return sum(len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs)
