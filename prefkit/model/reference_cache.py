"""Reference log-probabilities, one a scored token, computed once and kept on disk.

    FOLDER/manifest.json            what it was computed from; "complete" once all shards are there
    FOLDER/shard-00000.safetensors  logp (float32, scored tokens end to end), counts (tokens a
                                    side), and whose they are (hash of model and these pairs)

Shards are written one after another, each atomically, so a killed run continues where it stopped. A
cache is used only when it is complete and its fingerprint (model, precision, token ids, scored
flags) is the present one: anything else is refused by name, never half used.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prefkit.atomic import replace_file, write_json
from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError, PrefkitError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PAIRS_A_SHARD = 256
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 22  # values of a parameter that are summed in one go
_VOLATILE = ("_name_or_path", "transformers_version", "use_cache", "torch_dtype", "architectures")

# log-probabilities of the scored tokens: for each pair chosen, then rejected
ScoreFn = Callable[[Sequence[TokenizedPair]], list[tuple[Tensor, Tensor]]]


def fingerprint_model(model: nn.Module, *, without_adapter: bool = False) -> str:
    """A hash of the config and of every value of every parameter and buffer.

    Args:
        model: the reference.
        without_adapter: leave PEFT adapter weights out (they are switched off for the reference).
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    content = dict(config.to_dict()) if config is not None else {}
    for key in _VOLATILE:
        content.pop(key, None)
    digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if without_adapter and ("lora_" in name or "modules_to_save" in name):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{_checksum(tensor)}".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """Sums of a tensor's bits, plain and weighted by place, modulo 2⁶⁴.

    In integers, so that no order of summation (threads, GPUs) changes them.
    """
    flat = tensor.detach().reshape(-1).contiguous()
    if flat.is_complex() or flat.dtype.itemsize not in _BITS:
        flat = flat.view(torch.uint8)
    plain = weighted = 0
    for start in range(0, flat.numel(), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        bits = part.view(_BITS[part.dtype.itemsize]).to(torch.int64)
        places = torch.arange(start + 1, start + 1 + len(bits), device=bits.device)
        plain += int(bits.sum())
        weighted += int((bits * places).sum())
    return plain % 2**64, weighted % 2**64


def fingerprint_pairs(pairs: Sequence[TokenizedPair]) -> str:
    """A hash of all token ids and scored flags, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            digest.update(len(side.ids).to_bytes(4, "little"))
            digest.update(side.ids.astype("<i4").tobytes())
            digest.update(side.scored.astype("u1").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceCache:
    """A complete cache in memory: `cache[i]` gives the two sides of pair i, each (tokens,) fp32."""

    logp: Tensor  # (total scored tokens,) float32
    starts: Tensor  # (2 · pairs + 1,) int64: where each side begins

    def __len__(self) -> int:
        return (len(self.starts) - 1) // 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        a, b, c = self.starts[2 * index : 2 * index + 3].tolist()
        return self.logp[a:b], self.logp[b:c]


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _scored(pairs: Sequence[TokenizedPair]) -> list[int]:
    """Scored tokens that can be predicted (the first token of a sequence cannot), a side each."""
    return [int(side.scored[1:].sum()) for pair in pairs for side in (pair.chosen, pair.rejected)]


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


def _check_manifest(folder: Path, wanted: dict[str, Any]) -> None:
    """Starts a manifest, or refuses a folder that holds another run's cache."""
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
    for key, meaning in (
        ("version", "by another version of prefkit"),
        ("model", "with another reference model, adapter or precision"),
        ("pairs", "for other rows, another tokenizer or other data options"),
        ("pairs_a_shard", "with another shard size"),
    ):
        if found.get(key) != wanted[key]:
            raise ConfigError(
                f"{folder}: this reference cache was computed {meaning}. Delete the folder or "
                "choose another ref_cache_dir."
            )


def build_cache(
    folder: Path,
    pairs: Sequence[TokenizedPair],
    score: ScoreFn,
    *,
    model_fingerprint: str,
    batch_size: int,
    say: Callable[[str], None] = logger.info,
) -> ReferenceCache:
    """Completes the cache in `folder` (or finds it complete) and loads it.

    Args:
        folder: the cache's own folder.
        pairs: all pairs, in the order of the dataset.
        score: log-probabilities (nats) of the scored tokens of a few pairs.
        model_fingerprint: of the reference, with its precision.
        batch_size: pairs a call of `score`.
        say: receives progress lines (tokens a second, time left).

    Raises:
        ConfigError: the folder holds a cache of another model or of other pairs.
        PrefkitError: the reference gives NaN or infinite log-probabilities.
    """
    wanted = {
        "version": 1,
        "model": model_fingerprint,
        "pairs": fingerprint_pairs(pairs),
        "pairs_a_shard": PAIRS_A_SHARD,
    }
    _check_manifest(folder, wanted)
    logps, counts = [], []
    progress = _Progress(sum(len(s.ids) for p in pairs for s in (p.chosen, p.rejected)), say)
    for shard, start in enumerate(range(0, len(pairs), PAIRS_A_SHARD)):
        part = pairs_slice(pairs, start, start + PAIRS_A_SHARD)
        origin = f"{model_fingerprint}:{fingerprint_pairs(part)}"
        loaded = _read_shard(_shard_path(folder, shard), _scored(part), origin)
        if loaded is None:
            loaded = _score_shard(part, score, batch_size, progress)
            _write_shard(_shard_path(folder, shard), *loaded, origin)
        else:
            progress.skip(part)
        logps.append(loaded[0])
        counts.append(loaded[1])
    write_json(folder / MANIFEST, {**wanted, "complete": True})
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
    return ReferenceCache(torch.cat(logps) if logps else torch.empty(0), starts)


def pairs_slice(pairs: Sequence[TokenizedPair], start: int, stop: int) -> list[TokenizedPair]:
    """pairs[start:stop] of anything that can be indexed one by one."""
    return [pairs[i] for i in range(start, min(stop, len(pairs)))]


def _score_shard(
    part: list[TokenizedPair], score: ScoreFn, batch_size: int, progress: "_Progress"
) -> tuple[Tensor, Tensor]:
    # Pairs of like length together: less padding. Back in order before they are written.
    order = sorted(range(len(part)), key=lambda i: -max(len(part[i].chosen.ids), 1))
    sides: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(part)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for i, result in zip(chunk, score([part[i] for i in chunk]), strict=True):
            sides[i] = result
        progress.done([part[i] for i in chunk])
    for pair, both in zip(part, sides, strict=True):
        if not all(bool(torch.isfinite(side).all()) for side in both):
            raise PrefkitError(
                f"{pair.source}: row {pair.row}: the reference model gives log-probabilities that "
                "are not finite. Check the reference in float32, or leave the row out."
            )
    flat = [side.to("cpu", torch.float32) for both in sides for side in both]
    return torch.cat(flat), torch.tensor([len(side) for side in flat])


def _write_shard(path: Path, logp: Tensor, counts: Tensor, origin: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    save_file({"logp": logp, "counts": counts}, temporary, metadata={"origin": origin})
    replace_file(temporary, path)


class _Progress:
    """Says every ten seconds how far, how fast and how long still."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.left, self.say = total, say
        self.tokens, self.start, self.last = 0, time.monotonic(), time.monotonic()

    def skip(self, pairs: Sequence[TokenizedPair]) -> None:
        self.left -= sum(len(s.ids) for p in pairs for s in (p.chosen, p.rejected))

    def done(self, pairs: Sequence[TokenizedPair]) -> None:
        count = sum(len(s.ids) for p in pairs for s in (p.chosen, p.rejected))
        self.tokens, self.left = self.tokens + count, self.left - count
        now = time.monotonic()
        if now - self.last >= 10 or not self.left:
            rate = self.tokens / max(now - self.start, 1e-9)
            self.last = now
            self.say(
                f"Reference log-probabilities: {rate:,.0f} tokens/s, {self.left:,} tokens left, "
                f"about {self.left / max(rate, 1e-9):.0f} s."
            )
