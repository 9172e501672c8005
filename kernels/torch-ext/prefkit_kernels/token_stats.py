"""`token_stats`: per-token log-probabilities, KLs and entropies straight from hidden states."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from . import reference as definition
from .chunking import default_budget
from .logits import DIFFERENTIABLE, NEEDS_REFERENCE, OUTPUTS, LogitTransform
from .ops import token_stats_op

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BACKENDS = ("auto", "triton", "torch", "reference")


class TokenStats(NamedTuple):
    """Per-token quantities, each (T,) fp32 (fp64 from fp64 inputs), None where not asked for.

    In rows whose target is `ignore_index` every quantity is 0. Units: nats.

    Attributes:
        logp: log p(target) under the policy.
        ref_logp: the same under the reference; carries no gradient.
        kl: KL(reference ‖ policy) over the whole vocabulary (TDPO, arXiv 2404.11999).
        reverse_kl: KL(policy ‖ reference).
        entropy: entropy of the policy's distribution.
        log_sum_sq: log Σ_v p(v)² of the policy (WPO, arXiv 2406.11827).
    """

    logp: Tensor | None = None
    ref_logp: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq: Tensor | None = None


def token_stats(
    hidden: Tensor,  # (T, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (T,)
    bias: Tensor | None = None,  # (V,)
    ref_hidden: Tensor | None = None,  # (T, D')
    ref_weight: Tensor | None = None,  # (V', D')
    ref_bias: Tensor | None = None,  # (V',)
    outputs: tuple[str, ...] = ("logp",),
    ignore_index: int = -100,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
    backend: str = "auto",
) -> TokenStats:
    """Per-token quantities of a language-model head, without ever holding (T, V) logits.

    logits = softcap·tanh(logit_scale·(hidden @ weight.T + bias) / softcap) / temperature, in fp32
    whatever the inputs' precision. Differentiable in hidden, weight and bias for any cotangents;
    the reference's tensors receive no gradient.

    Args:
        hidden: (T, D) fp32 | bf16 | fp16 | fp64 final hidden states of the policy.
        weight: (V, D) head of the policy, same dtype (under autocast both are cast).
        targets: (T,) int64, the token that hidden[t] predicts (already shifted). Rows equal to
            `ignore_index` cost nothing and come back 0.
        bias: (V,) or None; −inf masks a class.
        ref_hidden, ref_weight, ref_bias: the reference's; D' and V' may differ from D and V. A
            class beyond the shorter vocabulary has probability 0 there (so KL(ref‖policy) is
            infinite if the reference alone has it).
        outputs: any of "logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq".
        ignore_index: target value of rows to skip.
        temperature: divides the logits, of policy and reference alike.
        logit_scale: multiplies the raw logits (Cohere; Granite: 1 / logits_scaling).
        softcap: Gemma-2's final logit softcap, or None.
        memory_budget: bytes for logits buffers; None = 64 MiB on a CPU, 1 GiB on a GPU.
        backend: "auto" (Triton on a GPU, torch elsewhere), "triton", "torch" (chunked, any
            device), "reference" (the unfused definition: holds (T, V) logits).
    Returns:
        TokenStats of (T,) tensors.
    Raises:
        ValueError: shapes, dtypes, devices, outputs or options that do not fit together; a target
            outside 0..V−1 (checked on a CPU only: it would cost a synchronisation on a GPU).
        TypeError: a DTensor; gather it first (`weight.full_tensor(grad_placements=…)`).
    """
    outputs = tuple(outputs)
    check_head(hidden, weight, targets, bias, "")
    _check_options(outputs, ref_hidden, ref_weight, temperature, softcap, memory_budget, backend)
    if not any(name in NEEDS_REFERENCE for name in outputs):
        ref_hidden = ref_weight = ref_bias = None
    elif ref_hidden is not None and ref_weight is not None:
        check_head(ref_hidden, ref_weight, targets, ref_bias, "ref_")
        ref_hidden, ref_weight = ref_hidden.detach(), ref_weight.detach()
        ref_bias = None if ref_bias is None else ref_bias.detach()
    classes = weight.shape[0]
    if ref_weight is not None and "ref_logp" in outputs:
        classes = min(classes, ref_weight.shape[0])
    check_targets(targets, classes, ignore_index)
    hidden, weight = autocast_operands(hidden, weight)
    check_dtypes(hidden, weight, "")
    if ref_hidden is not None and ref_weight is not None:
        ref_hidden, ref_weight = autocast_operands(ref_hidden, ref_weight)
        check_dtypes(ref_hidden, ref_weight, "ref_")
    transform = LogitTransform(float(logit_scale), float(softcap or 0.0), float(temperature))
    heads = (hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias)
    if backend == "reference":
        with torch.autocast(hidden.device.type, enabled=False):
            return _by_definition(*heads, outputs, ignore_index, transform)
    stats, _, _ = token_stats_op(
        *heads,
        [OUTPUTS.index(name) for name in outputs],
        ignore_index,
        transform.scale,
        transform.softcap,
        transform.temperature,
        memory_budget or default_budget(hidden.device),
        _resolve(backend, hidden),
        _one_pass(hidden, weight, bias, outputs),
    )
    return _named(outputs, stats)


def _one_pass(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, outputs: tuple[str, ...]
) -> bool:
    """Schedule A where it saves products: a frozen head and few enough directions.

    One pass costs 1 unit an output in the forward; two passes cost 1 in the backward and recompute
    the logits, 1 more with a reference that KLs need.
    """
    if not (torch.is_grad_enabled() and hidden.requires_grad) or weight.requires_grad:
        return False
    if bias is not None and bias.requires_grad:
        return False
    directions = sum(name in DIFFERENTIABLE for name in outputs)
    recompute = 2 if {"kl", "reverse_kl"} & set(outputs) else 1
    return 0 < directions < 1 + recompute


def _named(outputs: tuple[str, ...], stats: Tensor) -> TokenStats:
    named = {
        name: stats[k] if name in DIFFERENTIABLE else stats[k].detach()
        for k, name in enumerate(outputs)
    }
    return TokenStats(**named)


def _by_definition(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    outputs: tuple[str, ...],
    ignore_index: int,
    transform: LogitTransform,
) -> TokenStats:
    places = (targets != ignore_index).nonzero().squeeze(1)
    policy = definition.logits(hidden[places], weight, bias, transform)
    ref = None
    if ref_hidden is not None and ref_weight is not None:
        ref = definition.logits(ref_hidden[places], ref_weight, ref_bias, transform)
    found = definition.token_stats(policy, ref, targets[places], outputs)
    empty = policy.new_zeros(len(targets))
    return TokenStats(**{name: empty.index_copy(0, places, x) for name, x in found.items()})


def _resolve(backend: str, hidden: Tensor) -> str:
    if backend == "torch" or (backend == "auto" and not hidden.is_cuda):
        return "torch"
    if backend == "auto" and (hidden.dtype == torch.float64 or not _triton_available()):
        return "torch"
    if backend == "triton":
        _check_triton(hidden)
    return "triton"


def _triton_available() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _check_triton(hidden: Tensor) -> None:
    if not _triton_available():
        raise ValueError("backend='triton' needs Triton: pip install triton, or backend='auto'")
    if hidden.dtype == torch.float64:
        raise ValueError("backend='triton' computes in fp32; for fp64 use backend='torch'")
    from .rows_triton import interpreted

    if not hidden.is_cuda and not interpreted():
        raise ValueError(
            f"backend='triton' needs a GPU, but hidden is on {hidden.device}; use backend='auto' "
            "(or set TRITON_INTERPRET=1 before the import, to test the kernels on a CPU)"
        )


def autocast_operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What autocast does to a linear layer's operands; the logits stay fp32 all the same."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


def check_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, p: str
) -> None:
    for name, tensor in ((f"{p}hidden", hidden), (f"{p}weight", weight), (f"{p}bias", bias)):
        if isinstance(tensor, DTensor):
            raise TypeError(
                f"{name} is a DTensor: gather it first, with "
                "full_tensor(grad_placements=[Partial('avg')]) so that its gradient is reduced"
            )
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, {p}hidden on {hidden.device}")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{p}hidden must be (T, D) and {p}weight (V, D) with the same D, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}; flatten batches with flatten(0, 1)"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be (T,) = ({hidden.shape[0]},) int64 to fit {p}hidden, got "
            f"{tuple(targets.shape)} {targets.dtype}"
        )
    if targets.device != hidden.device:
        raise ValueError(f"targets are on {targets.device}, {p}hidden on {hidden.device}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{p}bias must be (V,) = ({weight.shape[0]},), got {tuple(bias.shape)}")


def check_dtypes(hidden: Tensor, weight: Tensor, p: str) -> None:
    if hidden.dtype not in _DTYPES:
        raise ValueError(f"{p}hidden must be a floating dtype, got {hidden.dtype}")
    if weight.dtype != hidden.dtype:
        raise ValueError(
            f"{p}hidden is {hidden.dtype} and {p}weight {weight.dtype}: cast one of them, or call "
            "under torch.autocast, which casts both"
        )


def _check_options(
    outputs: tuple[str, ...],
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    temperature: float,
    softcap: float | None,
    memory_budget: int | None,
    backend: str,
) -> None:
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise ValueError(f"outputs must be distinct names of {OUTPUTS}, got {outputs}")
    if (ref_hidden is None) != (ref_weight is None):
        raise ValueError("ref_hidden and ref_weight go together: give both or neither")
    wanting = [name for name in outputs if name in NEEDS_REFERENCE]
    if wanting and ref_hidden is None:
        raise ValueError(f"outputs {wanting} need ref_hidden and ref_weight")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be > 0 or None, got {softcap}")
    if memory_budget is not None and memory_budget <= 0:
        raise ValueError(f"memory_budget is in bytes and must be > 0, got {memory_budget}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def check_targets(targets: Tensor, classes: int, ignore_index: int) -> None:
    """Refuses targets outside 0..classes − 1; on a CPU only, a look costs a GPU a host sync."""
    if targets.is_cuda or torch.compiler.is_compiling():
        return
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= classes))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"targets[{row}] = {int(targets[row])} is outside 0..{classes - 1}; rows to be skipped "
            f"carry ignore_index = {ignore_index}"
        )
