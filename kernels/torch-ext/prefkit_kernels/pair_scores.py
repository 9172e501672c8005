"""`pair_scores`: linear scores of pairs, with their gradients made in the forward pass."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import Heads, Options, check_passes, checked, output_names
from .gemm import compute_dtype
from .kept import dz_bytes, fits
from .one_pass import COEFFICIENTS
from .ops_pairs import ScoresWithGradient, pair_scores_op
from .problem import refuse_unless
from .token_stats import TokenStats, named_stats
from .vocab_parallel import VocabShard


class PairScores(NamedTuple):
    """What `pair_scores` returns.

    Attributes:
        scores: (P,) fp32 (fp64 from fp64 inputs), differentiable once; where dz was kept, their
            backward may run again (`retain_graph=True`).
        stats: the per-token quantities, without gradient.
    """

    scores: Tensor
    stats: TokenStats


def pair_scores(
    hidden: Tensor,  # (T, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (T,)
    pairs: Tensor,  # (T,)
    num_pairs: int,
    coefficients: Mapping[str, Tensor],  # (T,) each
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
    num_scored: int | None = None,
    vocab_shard: VocabShard | None = None,
    passes: str = "auto",
) -> PairScores:
    """S_i = Σ_t (a_t·logp_t + b_t·KL_t) over the tokens of pair i, in one pass over the logits.

    For losses that are functions of such scores (the whole DPO family): the gradient of S is made
    chunk by chunk in the forward and multiplied by ∂L/∂S in the backward; nothing is recomputed
    (4NDV operations for the gradient where `token_stats` takes 6 to 8).

    Args:
        hidden, weight, targets, bias, ref_*, outputs and the options: as in `token_stats`.
        pairs: (T,) int64, pair 0..num_pairs − 1 of each row; anything in rows to skip.
        num_pairs: P.
        coefficients: "logp" and, if wanted, "kl": (T,) a_t and b_t, without gradient. Each must be
            among `outputs`.
        passes: what is held of a trainable weight's gradient. "one_pass": one (V, D) fp32
            accumulator, for one pair; it becomes the gradient itself where the weight is fp32.
            "keep_dz": the gradients by the logits of the N scored rows, N·V numbers in the dtype of
            hidden (fp32 on a CPU), for any number of pairs. "auto": the latter where that is within
            `kept.allowed_bytes`. A frozen head holds neither, whichever is given.
    Returns:
        PairScores: scores (P,), and the stats that `outputs` names.
    Raises:
        ValueError: as `token_stats`; several pairs with a trainable head for which "auto" finds dz
            too large, or "one_pass"; unknown coefficients.
    """
    check_passes(passes)
    if passes == "two_pass":
        raise ValueError("pair_scores takes one pass; for two passes take token_stats")
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
    table = _coefficients(coefficients, options.outputs, targets, compute_dtype(hidden.dtype))
    differentiated = [hidden, weight, bias]
    needs = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in differentiated
    ]
    trainable = needs[1] or needs[2]
    _check_pairs(pairs, num_pairs, targets != ignore_index)
    if backend == "reference":
        raise ValueError("backend='reference' is token_stats' alone: pair_scores has no definition")
    keep = trainable and _keeps(passes, heads, weight, num_pairs, options)
    if keep and num_scored is None and torch.compiler.is_compiling():
        raise ValueError(
            "passes='keep_dz' in a compiled graph needs num_scored: the number of rows that are "
            "not ignored is a size there"
        )
    if keep and num_scored is None:  # a size that the operator has to state
        options = options._replace(num_scored=int((targets != ignore_index).sum()))
    operands = [None if x is None else x.detach() for x in heads]
    scores, stats, *made = pair_scores_op(
        *operands, *options.settings(hidden), pairs, table, num_pairs, *needs, keep
    )
    if any(needs):
        pair_of_row = torch.where(targets == ignore_index, num_pairs, pairs)
        # The caller's own tensors: under autocast an fp32 weight gets its fp32 gradient, unrounded.
        rows = (pair_of_row, operands[0], targets, ignore_index)
        scores = ScoresWithGradient.apply(hidden, weight, bias, scores, *rows, *made)
    return PairScores(scores, named_stats(options.outputs, stats))


def _keeps(passes: str, heads: Heads, weight: Tensor, num_pairs: int, options: Options) -> bool:
    """Whether dz is kept, for a trainable head; refuses what does not fit."""
    if passes == "keep_dz":
        return True
    if passes == "one_pass" and num_pairs > 1:
        raise ValueError(
            f"{num_pairs} pairs with a trainable head would need an accumulator of the weight's "
            "size for each in passes='one_pass': give one pair, freeze the head, or keep dz"
        )
    if passes == "one_pass":
        return False
    limits = (options.num_scored, options.memory_budget, options.vocab_shard)
    if not keeps_dz((heads[0], heads[2]), weight, num_pairs, *limits):
        if num_pairs == 1:
            return False
        if options.num_scored is None and torch.compiler.is_compiling():
            raise ValueError(
                f"{num_pairs} pairs with a trainable head in a compiled graph: give num_scored"
            )
        rows = options.num_scored if options.num_scored is not None else len(heads[2])
        held = dz_bytes(rows, weight.shape[0], heads[0])
        raise ValueError(
            f"{num_pairs} pairs with a trainable head: the gradients by the logits of {rows} "
            f"tokens would take {held / 1e6:.3g} MB, more than passes='auto' keeps; give "
            "passes='keep_dz' to keep them, one pair, or use token_stats"
        )
    return True


def keeps_dz(
    rows: tuple[Tensor, Tensor],  # hidden (T, D) in the products' dtype, targets (T,)
    weight: Tensor,  # (V, D) in the dtype of its gradient
    num_pairs: int,
    num_scored: int | None = None,
    memory_budget: int | None = None,
    vocab_shard: VocabShard | None = None,
) -> bool:
    """Whether `passes="auto"` keeps dz for a trainable head: by bytes, without synchronisation.

    Where the scored rows are not counted beforehand, all rows are taken for scored.
    """
    hidden, targets = rows
    if num_scored is None and torch.compiler.is_compiling():  # counting would break the graph
        return False
    count = len(targets) if num_scored is None else num_scored
    widest = vocab_shard.widest if vocab_shard else None
    return fits(hidden, weight, count, num_pairs, memory_budget or 0, widest)


def _coefficients(
    given: Mapping[str, Tensor], outputs: tuple[str, ...], targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """(2, T) in the order of `one_pass.COEFFICIENTS`, zeros where none is given."""
    if not isinstance(given, Mapping):
        raise ValueError(f"coefficients must be a dict of tensors, got a {type(given).__name__}")
    for name, values in given.items():
        if not isinstance(values, Tensor):
            raise ValueError(
                f"coefficients[{name!r}] must be a tensor (T,), got a {type(values).__name__}"
            )
    unknown = [name for name in given if name not in COEFFICIENTS or name not in outputs]
    if unknown or not given:
        raise ValueError(
            f"coefficients are of {COEFFICIENTS} and must be among outputs = {outputs}; got "
            f"{tuple(given)}"
        )
    table = torch.zeros(len(COEFFICIENTS), len(targets), dtype=dtype, device=targets.device)
    for name, values in given.items():
        if values.requires_grad:
            raise ValueError(
                f"coefficients[{name!r}] require a gradient, which pair_scores does not give: "
                "detach them, or use token_stats"
            )
        if values.shape != targets.shape:
            raise ValueError(
                f"coefficients[{name!r}] must be (T,) = {tuple(targets.shape)}, got "
                f"{tuple(values.shape)}"
            )
        table[COEFFICIENTS.index(name)] = values
    return table


def _check_pairs(pairs: Tensor, num_pairs: int, counts: Tensor) -> None:
    if pairs.shape != counts.shape or pairs.dtype != torch.int64:
        raise ValueError(
            f"pairs must be (T,) = {tuple(counts.shape)} int64, got {tuple(pairs.shape)} "
            f"{pairs.dtype}"
        )
    if not isinstance(num_pairs, int | torch.SymInt) or num_pairs < 1:
        raise ValueError(f"num_pairs must be a whole number ≥ 1, got {num_pairs!r}")
    right = (~counts | ((pairs >= 0) & (pairs < num_pairs))).all()
    refuse_unless(right, f"pairs must be in 0..{num_pairs - 1} in every row that is not ignored")
