"""Hashes that say which model and which tokenised pairs something was computed from."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from prefkit.data.pair import TokenizedPair

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 22  # values of a parameter that are summed in one go
_VOLATILE = ("_name_or_path", "transformers_version", "use_cache", "torch_dtype", "architectures")


def fingerprint_model(
    model: nn.Module, *, without_adapter: bool = False, but: str | None = None
) -> str:
    """A hash of the config and of every value of every parameter and buffer.

    Args:
        model: the reference.
        without_adapter: leave PEFT adapter weights out (they are not in use in the reference).
        but: the name of an adapter that is: its weights count.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    content = dict(config.to_dict()) if config is not None else {}
    for key in _VOLATILE:
        content.pop(key, None)
    digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        of_adapter = "lora_" in name or "modules_to_save" in name
        if without_adapter and of_adapter and not (but and f".{but}" in name):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{_checksum(tensor)}".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """Sums of a tensor's bits, plain and weighted by place, modulo 2⁶⁴.

    In integers, so that no order of summation (threads, GPUs) changes them. Of a quantised tensor
    (torchao's) that is made of others, the sums of those, one after another.
    """
    if is_traceable_wrapper_subclass(tensor) and not isinstance(tensor, DTensor):
        names, _ = tensor.__tensor_flatten__()
        plain = weighted = 0
        for place, part in enumerate((getattr(tensor, name) for name in names), 1):
            of_plain, of_weighted = _checksum(part)
            plain, weighted = plain + place * of_plain, weighted + place * of_weighted
        return plain % 2**64, weighted % 2**64
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
