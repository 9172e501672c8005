"""What every cache of reference values is made of: a manifest, shards, and a loop that fills them.

    FOLDER/manifest.json            what it was computed from; "complete" once all shards are there
    FOLDER/shard-00000.safetensors  values of the scored tokens of some pairs, end to end

Shards are written one after another, each atomically, so a killed run continues where it stopped.
A cache is used only where its fingerprint (model, precision, token ids, scored flags) is the
present one: anything else is refused by name, never half used.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError, PrefkitError
from prefkit.files.atomic import replace_file, write_json
from prefkit.files.progress import Progress

MANIFEST = "manifest.json"
Sides = tuple[Tensor, Tensor]  # of one pair: chosen, rejected
ComputeFn = Callable[[Sequence[TokenizedPair]], list[Sides]]
_MEANINGS = {
    "kind": "of other values (log-probabilities, hidden states)",
    "version": "by another version of prefkit",
    "model": "with another reference model, adapter or precision",
    "pairs": "for other rows, another tokenizer or other data options",
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


def scored_counts(pairs: Sequence[TokenizedPair]) -> list[int]:
    """Scored tokens that can be predicted (the first token of a sequence cannot), for each
    response."""
    return [int(side.scored[1:].sum()) for pair in pairs for side in (pair.chosen, pair.rejected)]


def pairs_slice(pairs: Sequence[TokenizedPair], start: int, stop: int) -> list[TokenizedPair]:
    """pairs[start:stop] of anything that can be indexed one by one."""
    return [pairs[i] for i in range(start, min(stop, len(pairs)))]


def compute_sides(
    part: list[TokenizedPair],
    compute: ComputeFn,
    batch_size: int,
    dtype: torch.dtype,
    what: str,
    progress: Progress,
) -> list[Tensor]:
    """compute's values of the responses of these pairs in their order, on the CPU.

    Args:
        part: pairs.
        compute: values of the scored tokens of a few pairs.
        batch_size: pairs a call.
        dtype: of the result.
        what: the values' name.
        progress: counts tokens.

    Raises:
        PrefkitError: a value that is not finite, in `dtype`.
    """
    # Pairs of like length together: less padding. Back in order before they are written.
    order = sorted(range(len(part)), key=lambda i: -max(len(part[i].chosen.ids), 1))
    sides: list[Tensor] = [torch.empty(0)] * (2 * len(part))
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for i, both in zip(chunk, compute([part[i] for i in chunk]), strict=True):
            sides[2 * i : 2 * i + 2] = [side.to("cpu", dtype) for side in both]
        progress.add(tokens_of([part[i] for i in chunk]))
    for i, side in enumerate(sides):
        if not bool(torch.isfinite(side).all()):
            pair = part[i // 2]
            raise PrefkitError(
                f"{pair.source}: row {pair.row}: the reference model gives {what} that are not "
                "finite. Check the reference in float32, or leave the row out."
            )
    return sides


def tokens_of(pairs: Sequence[TokenizedPair]) -> int:
    """Tokens of both sequences of some pairs."""
    return sum(len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs)
