"""`token_stats`: per-token log-probabilities, KLs and entropies straight from hidden states.

The function, and the torch.library operators under it: forward, backward, their fakes and their
autograd. Being operators, they are opaque to `torch.compile` (no graph break), have static output
shapes (scored positions are gathered inside) and are checked by `torch.library.opcheck`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..core import reference as definition
from ..core.checks import HeadTensors, Options, check_passes, checked, output_names
from ..core.gemm import compute_dtype
from ..core.outputs import KLS, TokenStats, differentiated, named_stats
from ..core.problem import (
    NUM_SETTINGS,
    NUM_TENSORS,
    SETTINGS,
    TENSORS,
    names_of,
    plain,
    problem_of,
)
from ..vocab_parallel import VocabShard
from .passes import backward, forward, scale_directions


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
    passes: str = "auto",
    num_scored: int | None = None,
    vocab_shard: VocabShard | None = None,
    detached: tuple[str, ...] = (),
) -> TokenStats:
    """Per-token quantities of a language-model head, without ever holding (T, V) logits.

    logits = softcap·tanh(logit_scale·(hidden @ weight.T + bias) / softcap) / temperature, in fp32
    whatever the inputs' precision. Differentiable in hidden, weight and bias for any cotangents;
    the reference's tensors receive no gradient.

    Args:
        hidden: (T, D) fp32 | bf16 | fp16 | fp64 final hidden states of the policy.
        weight: (V, D) head of the policy, same dtype (under autocast both are cast).
        targets: (T,) int64, the token that hidden[t] predicts (already shifted). Positions equal
            to `ignore_index` cost nothing and come back 0.
        bias: (V,) or None; −inf masks a class.
        ref_hidden, ref_weight, ref_bias: the reference's; D' and V' may differ from D and V. A
            class beyond the shorter vocabulary has probability 0 there (so KL(ref‖policy) is
            infinite if the reference alone has it).
        outputs: any of "logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq", "max_logp",
            "mean_logit" (see `TokenStats`).
        ignore_index: target value of positions to skip.
        temperature: divides the logits, of policy and reference alike.
        logit_scale: multiplies the raw logits (Cohere; Granite: 1 / logits_scaling).
        softcap: Gemma-2's final logit softcap, or None.
        memory_budget: bytes for logits buffers; None = for 256 tokens on a CPU, 1 GiB on a GPU.
        backend: "auto" (Triton on a GPU, torch elsewhere), "triton", "torch" (chunked, any
            device), "reference" (the unfused definition: holds (T, V) logits).
        passes: how the gradient is made. "one_pass": while the logits are there, for a frozen
            head; holds a (T, D) direction for each differentiable output. "two_pass": the backward
            computes the logits again, by slices of the vocabulary. "auto": one pass where the head
            is frozen and it saves products. (`pair_scores` is the one pass of a trainable head.)
        num_scored: number of positions whose target is not `ignore_index`, if you know it: saves a
            GPU two synchronisations. A wrong number is refused (by a device-side assertion there).
        vocab_shard: where weight and ref_weight are this process's slice of the vocabulary.
        detached: outputs to give without gradient, such as an "entropy" that is only logged: one
            pass holds no direction for them, and a backward has no work with them.
    Returns:
        TokenStats of (T,) tensors.
    Raises:
        ValueError: shapes, dtypes, devices, outputs or options that do not fit together; a target
            outside 0..V−1 (checked on a CPU only: it would cost a synchronisation on a GPU).
        TypeError: a DTensor; gather it first (`weight.full_tensor(grad_placements=…)`).
    """
    check_passes(passes)
    if passes == "keep_dz":
        raise ValueError(
            "passes='keep_dz' is for losses of linear scores: pair_scores, fused_preference_loss"
        )
    options = Options(
        output_names(outputs),
        output_names(detached, "detached"),
        ignore_index,
        temperature,
        logit_scale,
        softcap,
        memory_budget,
        backend,
        num_scored,
        vocab_shard,
    )
    heads = checked((hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias), options)
    if backend == "reference":
        with torch.autocast(hidden.device.type, enabled=False):
            return _by_definition(heads, options)
    one_pass = _one_pass(heads, differentiated(options.outputs, options.detached), passes)
    stats, _, _ = token_stats_op(*heads, *options.settings(hidden), one_pass)
    return named_stats(options.outputs, stats, options.detached)


def _one_pass(heads: HeadTensors, names: tuple[str, ...], passes: str) -> bool:
    """One pass where it saves products: a frozen head and few enough directions.

    `names` are the outputs that get a gradient. One pass costs 1 unit for each in the forward; two
    passes cost 1 in the backward and recompute the logits, 1 more with a reference that KLs need.
    """
    hidden, weight, _, bias, *_ = heads
    if passes == "two_pass" or not torch.is_grad_enabled():
        return False
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        if passes == "one_pass":
            raise ValueError(
                "passes='one_pass' needs a frozen head here (weight and bias without gradient); "
                "for a trainable one use pair_scores, or fused_preference_loss with one pair"
            )
        return False
    if not hidden.requires_grad or not names:
        return False
    recompute = 2 if KLS & set(names) else 1
    return passes == "one_pass" or len(names) < 1 + recompute


def _by_definition(heads: HeadTensors, options: Options) -> TokenStats:
    hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias = heads
    positions = (targets != options.ignore_index).nonzero().squeeze(1)
    policy = definition.logits(hidden[positions], weight, bias, options.scaling)
    ref = None
    if ref_hidden is not None and ref_weight is not None:
        ref = definition.logits(ref_hidden[positions], ref_weight, ref_bias, options.scaling)
    found = definition.token_stats(policy, ref, targets[positions], options.outputs)
    found = {name: x.detach() if name in options.detached else x for name, x in found.items()}
    empty = policy.new_zeros(len(targets))
    return TokenStats(**{name: empty.index_copy(0, positions, x) for name, x in found.items()})


@torch.library.custom_op(
    add_op_namespace_prefix("token_stats"),
    mutates_args=(),
    schema=f"({TENSORS}, {SETTINGS}, bool with_directions) -> (Tensor, Tensor, Tensor)",
)
def token_stats_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(stats (K, T), norms (4, T), directions (K', T, D)); see `passes.forward`."""
    *problem, with_directions = args
    with plain(args[0]):
        return forward(problem_of(*problem), with_directions)


@token_stats_op.register_fake
def _token_stats_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, outputs, with_directions = args[0], args[NUM_TENSORS], args[-1]
    detached = args[NUM_TENSORS + 1]
    dtype = compute_dtype(hidden.dtype)
    tokens, dim = hidden.shape
    directions = 0
    if with_directions:
        directions = len(differentiated(names_of(outputs), names_of(detached)))
    return (
        hidden.new_empty(len(outputs), tokens, dtype=dtype),
        hidden.new_empty(4, tokens, dtype=dtype),
        hidden.new_empty(directions, tokens, dim),
    )


@torch.library.custom_op(
    add_op_namespace_prefix("token_stats_backward"),
    mutates_args=(),
    schema=(
        f"(Tensor cotangents, Tensor stats, Tensor norms, {TENSORS}, {SETTINGS}, "
        "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
    ),
)
def token_stats_backward_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(d hidden, d weight, d bias), each empty where not needed; see `passes.backward`."""
    cotangents, stats, norms, *problem = args[:-3]
    hidden = problem[0]
    with plain(hidden):
        grads = backward(problem_of(*problem), stats, norms, cotangents, args[-3:])
    found = [hidden.new_empty(0) if grad is None else grad for grad in grads]
    return found[0], found[1], found[2]


@token_stats_backward_op.register_fake
def _token_stats_backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, _, bias = args[3:7]
    found = [
        tensor.new_empty(tensor.shape) if need and tensor is not None else hidden.new_empty(0)
        for tensor, need in zip((hidden, weight, bias), args[-3:])
    ]
    return found[0], found[1], found[2]


@torch.library.custom_op(
    add_op_namespace_prefix("scale_directions"),
    mutates_args=(),
    schema="(Tensor directions, Tensor cotangents, Tensor skipped) -> Tensor",
)
def scale_directions_op(directions: Tensor, cotangents: Tensor, skipped: Tensor) -> Tensor:
    """See `passes.scale_directions`; an operator, so that a second derivative is refused."""
    with plain(directions):
        return scale_directions(directions, cotangents, skipped)


@scale_directions_op.register_fake
def _scale_directions_fake(directions: Tensor, cotangents: Tensor, skipped: Tensor) -> Tensor:
    return directions.new_empty(directions.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[NUM_TENSORS : NUM_TENSORS + NUM_SETTINGS]
    stats, norms, directions = output
    ctx.one_pass = directions.shape[0] > 0
    if ctx.one_pass:
        ctx.save_for_backward(directions, inputs[2])
    else:
        ctx.save_for_backward(stats, norms, *inputs[:NUM_TENSORS])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_stats: Tensor | None, *_unused: Any) -> tuple[Any, ...]:
    grads: list[Any] = [None] * (NUM_TENSORS + NUM_SETTINGS + 1)
    if grad_stats is None:
        return tuple(grads)
    if ctx.one_pass:
        directions, targets = ctx.saved_tensors
        outputs, detached, ignore_index = ctx.settings[:3]
        names = names_of(outputs)
        kept = differentiated(names, names_of(detached))
        cotangents = torch.stack([grad_stats[names.index(name)] for name in kept])
        grads[0] = scale_directions_op(directions, cotangents, targets == ignore_index)
        return tuple(grads)
    stats, norms, *tensors = ctx.saved_tensors
    arguments = (0, 1, 3)  # hidden, weight, bias
    needs = [ctx.needs_input_grad[k] for k in arguments]
    found = token_stats_backward_op(
        grad_stats.contiguous(), stats, norms, *tensors, *ctx.settings, *needs
    )
    for k, need, grad in zip(arguments, needs, found):
        grads[k] = grad if need else None
    return tuple(grads)


torch.library.register_autograd(token_stats_op, _backward, setup_context=_setup_context)
