"""`token_stats`: per-token log-probabilities, KLs and entropies straight from hidden states."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import reference as definition
from .checks import Heads, Options, check_passes, checked, output_names
from .logits import DIFFERENTIABLE, KLS
from .ops import token_stats_op
from .vocab_parallel import VocabShard


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
    passes: str = "auto",
    num_scored: int | None = None,
    vocab_shard: VocabShard | None = None,
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
        memory_budget: bytes for logits buffers; None = what 256 rows need on a CPU, 1 GiB on a GPU.
        backend: "auto" (Triton on a GPU, torch elsewhere), "triton", "torch" (chunked, any
            device), "reference" (the unfused definition: holds (T, V) logits).
        passes: how the gradient is made. "one_pass": while the logits are there, for a frozen
            head; holds a (T, D) direction for each differentiable output. "two_pass": the backward
            computes the logits again, by slices of the vocabulary. "auto": one pass where the head
            is frozen and it saves products. (`pair_scores` is the one pass of a trainable head.)
        num_scored: number of rows whose target is not `ignore_index`, if you know it: saves a GPU
            two synchronisations. A wrong number is refused (on a GPU by a device-side assertion).
        vocab_shard: where weight and ref_weight are this process's slice of the vocabulary.
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
    one_pass = _one_pass(heads, options.outputs, passes)
    stats, _, _ = token_stats_op(*heads, *options.settings(hidden), one_pass)
    return named_stats(options.outputs, stats)


def _one_pass(heads: Heads, outputs: tuple[str, ...], passes: str) -> bool:
    """One pass where it saves products: a frozen head and few enough directions.

    One pass costs 1 unit an output in the forward; two passes cost 1 in the backward and recompute
    the logits, 1 more with a reference that KLs need.
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
    directions = sum(name in DIFFERENTIABLE for name in outputs)
    if not hidden.requires_grad or not directions:
        return False
    recompute = 2 if KLS & set(outputs) else 1
    return passes == "one_pass" or directions < 1 + recompute


def named_stats(outputs: tuple[str, ...], stats: Tensor) -> TokenStats:
    named = {
        name: stats[k] if name in DIFFERENTIABLE else stats[k].detach()
        for k, name in enumerate(outputs)
    }
    return TokenStats(**named)


def _by_definition(heads: Heads, options: Options) -> TokenStats:
    hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias = heads
    places = (targets != options.ignore_index).nonzero().squeeze(1)
    policy = definition.logits(hidden[places], weight, bias, options.transform)
    ref = None
    if ref_hidden is not None and ref_weight is not None:
        ref = definition.logits(ref_hidden[places], ref_weight, ref_bias, options.transform)
    found = definition.token_stats(policy, ref, targets[places], options.outputs)
    empty = policy.new_zeros(len(targets))
    return TokenStats(**{name: empty.index_copy(0, places, x) for name, x in found.items()})
