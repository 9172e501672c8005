"""`fused_preference_loss`: hidden states in, preference loss out, for anybody's training loop."""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from prefkit.loss.groups import check_groups
from prefkit.loss.objective import Objective
from prefkit.loss.passes import by_token, choose
from prefkit.loss.sequence_group import check_group, together
from prefkit.loss.shared_tokens import Uses, scores_by_token
from prefkit.loss.sides import Sides, check_both_sides, check_margins, check_segments
from prefkit.loss.token_metrics import LOGGED, token_metrics
from prefkit.loss.wrappers import check_operands
from prefkit_kernels import TokenStats, pair_scores, token_stats


@dataclass(frozen=True)
class PreferenceLoss:
    """What `fused_preference_loss` returns.

    Attributes:
        loss: scalar, differentiable in hidden and weight.
        metrics: detached scalars under TRL's names: means over the pairs of the call (rewards/*,
            logps/*, kl/*), or over its scored tokens (see `prefkit.loss.token_metrics`).
        stats: the per-token quantities, detached, (N,) each; for analysis.
        logps: (P, 2) log-probabilities of the chosen and the rejected response in nats, plain sums
            over their scored tokens; detached.
        rewards: (P, 2) as the loss sees them; detached.
        tokens: (2,) the scored tokens of chosen and of rejected sides, to weigh means over tokens.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    stats: TokenStats
    logps: Tensor
    rewards: Tensor
    tokens: Tensor


# A module that fully_shard was called on may return one: FSDP2 looks for gradients in what it can
# take apart, and where it finds none, weights are not gathered for the backward nor their gradients
# reduced in time: other weights come out, without a word.
register_pytree_node(
    PreferenceLoss,
    lambda out: ([getattr(out, field.name) for field in fields(out)], None),
    lambda parts, _: PreferenceLoss(*parts),
    serialized_type_name="prefkit.PreferenceLoss",
)


def fused_preference_loss(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (N,)
    segments: Tensor,  # (T,), T = N without token_index
    objective: Objective,
    weights: Tensor | None = None,  # (T,)
    ref_hidden: Tensor | None = None,  # (N, D')
    ref_weight: Tensor | None = None,  # (V', D')
    ref_logp: Tensor | None = None,  # (N,)
    num_pairs: int | Tensor | None = None,
    passes: str = "auto",
    pairs_in_call: int | None = None,
    sequence_group: dist.ProcessGroup | None = None,
    margins: Tensor | None = None,  # (P,)
    groups: Tensor | None = None,  # (P,)
    token_index: Tensor | None = None,  # (T,)
    one_sided: bool = False,
    reference_point: Tensor | None = None,  # ()
    lone_sides: bool = False,
    log_entropy: bool = False,
    **options: Any,
) -> PreferenceLoss:
    """Preference loss of a flat stream of tokens, without ever holding (N, V) logits.

    Args:
        hidden: (N, D) fp32 | bf16 | fp16 final hidden states of the policy.
        weight: (V, D) the policy's head.
        targets: (N,) int64, the token that hidden[t] predicts (already shifted).
        segments: (T,) int64, aligned with targets (or with token_index): 2i for a scored chosen
            token of pair i, 2i + 1 for a rejected one, −1 for everything else (prompt, shared
            prefix, padding). Both sides of a pair have tokens, be it of weight 0, unless the loss
            is a sum over responses (KTO; loss_type nca_pair, bco_pair, sppo_hard, apo_zero, sft)
            or `lone_sides` says so.
        objective: `DPO(…)`, `DPOP(…)`, `TDPO(…)`, `SimPO(…)`, `ORPO(…)` or `KTO(…)`.
        weights: (T,) float ≥ 0, or None = 1. A token of weight 0 is skipped.
        ref_hidden, ref_weight: (N, D'), (V', D'): the reference as hidden states, or
        ref_logp: (N,) its cached per-token log-probs, where the objective needs no KL.
        num_pairs: divisor of the mean over pairs; None = the pairs in this call. Give the pairs of
            the whole optimiser step when you accumulate gradients. With groups the mean is over
            them: None = the groups in this call, else give the groups of the whole step.
        passes: "one_pass", "keep_dz", "two_pass" or "auto"; see `prefkit.loss.passes`.
        pairs_in_call: number of pairs in this call, if you know it: segments < 2·pairs_in_call.
            None counts them, which costs a GPU a synchronisation, and breaks a compiled graph.
        sequence_group: processes that share the tokens of the same pairs (sequence or context
            parallelism). Each gives its own tokens, in any split, as few as none: hidden, targets
            (shifted before they were split), segments with pair numbers of the whole group,
            weights, ref_hidden or ref_logp; the same objective, num_pairs and pairs_in_call, which
            is needed. Loss and metrics are those of the whole pairs, equal on every rank. The
            backward gives each rank the gradient by its own hidden states, and its part of the
            head's: *summed* over the group they are a single process's. Where a data-parallel mean
            over all ranks follows, multiply the loss by the group's size (`sequence_group`).
        margins: (P,) float, a margin for each pair of the call, where the objective reads it
            (margin_weight of the DPO family).
        groups: (P,) int64, the number of each pair's group, in [0, P), in any order, where the
            objective needs it (loss_type "plackett_luce"). The pairs of a group have the same
            chosen response; a group must not be spread over calls. The same on every rank of a
            sequence_group.
        token_index: (T,) int64 below N, where a token serves several sides (a tree of responses):
            segments and weights are then T entries, and entry t is of token token_index[t]. Each
            token is computed once, whatever the number of its entries.
        one_sided: no token is used by both a chosen and a rejected side; lets losses with a KL be
            made in one pass. True where it does not hold gives wrong gradients.
        reference_point: () z0 of `KTO`, without gradient: the mean over mismatched responses of
            Σ (logp − ref_logp), at least 0. With KTO num_pairs counts responses, not pairs.
        lone_sides: a pair may lack a side, whose sums are then 0. Losses of single responses (KTO)
            take such pairs always, others refuse them otherwise (on a CPU).
        log_entropy: also the metric "entropy" (nats a token, both sides), which takes another look
            at the logits.
        options: of `token_stats`: bias, ref_bias, softcap, logit_scale, temperature,
            memory_budget, backend, num_scored, vocab_shard.
    Returns:
        PreferenceLoss: `.loss`, `.metrics`, `.stats`, `.tokens`.
    Raises:
        ValueError: shapes, references or options that do not fit; no scored token at all; a pair
            without a side that its loss needs (on a CPU, as all that tokens are asked for); a
            passes that cannot compute this loss; what the objective's weights may not be; with a
            group also a loss that needs whole responses (reduction="position", ld_alpha,
            token_weights, pair_weights), and what another rank of it refused; a weight
            that was freed, or that belongs to a DDP model which was never called
            (`prefkit.loss.wrappers`).
        TypeError: a weight that is a DTensor.
    """
    if not isinstance(objective, Objective):
        raise ValueError(
            f"objective is {objective!r}; give an instance such as DPO(beta=0.1) or TDPO(beta=0.1)"
        )
    for name in ("outputs", "detached"):
        if name in options:
            raise ValueError(
                f"{name} is set by the objective; use token_stats for other quantities"
            )
    _check_counts(num_pairs, pairs_in_call)
    if sequence_group is not None:
        check_group(sequence_group, pairs_in_call)
        _check_whole_sides(objective)
    ignore_index = options.setdefault("ignore_index", -100)
    uses = Uses(token_index, one_sided)

    def check() -> Tensor:
        check_operands(hidden, weight)
        _check_vectors(targets, segments, weights, ref_logp, token_index)
        uses.check(targets)
        _check_reference(objective, ref_hidden, ref_weight, ref_logp)
        scored = segments >= 0
        if weights is not None:  # such a token keeps its segment: a position is still a position
            scored = scored & (weights != 0)
        _check_scored(targets, scored, weights, ignore_index, token_index)
        _check_margins(objective, margins)
        _check_groups(objective, groups)
        _check_reference_point(objective, reference_point)
        if pairs_in_call is not None:
            _check_by_pair(margins, groups, pairs_in_call)
        if sequence_group is not None and pairs_in_call is not None:
            check_segments(segments, pairs_in_call)
        return scored

    scored = together(sequence_group, targets.device, pairs_in_call, check)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    like = segments.new_empty(segments.shape, dtype=dtype)
    sides = Sides.of(segments, weights, like, pairs_in_call, sequence_group)
    _check_any(sides.present)
    if not (lone_sides or objective.takes_lone_sides):
        check_both_sides(sides)
    if pairs_in_call is None:  # else they have been counted and checked
        _check_by_pair(margins, groups, sides.count)
    outputs = objective.outputs
    wanted = (*LOGGED, *(["entropy"] if log_entropy else []))
    logged = tuple(name for name in wanted if name not in outputs)
    outputs = (*outputs, *logged)
    if ref_logp is not None:
        outputs = tuple(name for name in outputs if name != "ref_logp")
    is_scored = uses.any(scored, len(targets))
    heads = (hidden, weight, torch.where(is_scored, targets, ignore_index))
    options |= {"outputs": outputs}
    if objective.needs_reference:
        options |= {"ref_hidden": ref_hidden, "ref_weight": ref_weight}

    def compute() -> tuple[Tensor | None, TokenStats]:
        one_pass = choose(passes, objective, sides.count, heads, options, weights, uses)
        if one_pass is not None and by_token(objective, uses):
            linear = objective.linear if objective.needs_kl else None
            return scores_by_token(heads, uses, linear, sides, one_pass, options)
        if one_pass is not None:
            assert objective.linear is not None, "choose has looked"
            coefficients = objective.linear.coefficients(objective.reward_sides(sides))
            pairs = (segments // 2, sides.count, coefficients)
            return pair_scores(*heads, *pairs, passes=one_pass, **options)
        if passes == "two_pass":
            options["passes"] = passes
        return None, token_stats(*heads, detached=(*logged, *objective.read_by_hooks), **options)

    scores, stats = together(sequence_group, targets.device, pairs_in_call, compute)
    if ref_logp is not None:
        cached = torch.where(is_scored, ref_logp.detach(), 0).to(sides.weights.dtype)
        stats = stats._replace(ref_logp=cached)
    spread = uses.spread_stats(stats, scored)
    of_pairs = (scores, margins, groups, reference_point)
    result = objective(spread, segments, weights, num_pairs, sides, *of_pairs)
    metrics = {**result.metrics, **token_metrics(spread, sides)}
    detached = TokenStats(*(None if x is None else x.detach() for x in stats))
    tokens = sides.tokens.sum(0)
    return PreferenceLoss(result.loss, metrics, detached, result.logps, result.rewards, tokens)


def _check_counts(num_pairs: int | Tensor | None, pairs_in_call: int | None) -> None:
    if num_pairs is not None and not isinstance(num_pairs, Tensor) and not num_pairs > 0:
        raise ValueError(f"num_pairs is the divisor of the mean and must be > 0, got {num_pairs}")
    whole = isinstance(pairs_in_call, int) and not isinstance(pairs_in_call, bool)
    if pairs_in_call is not None and not (whole and pairs_in_call > 0):
        raise ValueError(f"pairs_in_call must be a whole number > 0, got {pairs_in_call!r}")


def _check_vectors(
    targets: Tensor,
    segments: Tensor,
    weights: Tensor | None,
    ref_logp: Tensor | None,
    token_index: Tensor | None,
) -> None:
    like, entries = ("targets", targets), ("targets", targets)
    if token_index is not None:
        entries = ("token_index", token_index)
    aligned = (("segments", segments, entries), ("weights", weights, entries))
    for name, vector, (other, beside) in (*aligned, ("ref_logp", ref_logp, like)):
        if vector is not None and vector.shape != beside.shape:
            raise ValueError(
                f"{name} must have the shape of {other}, {tuple(beside.shape)}, got "
                f"{tuple(vector.shape)}; all are aligned with the predicting position (in a batch "
                "of trees, give its token_index)"
            )
    if segments.dtype != torch.int64:
        raise ValueError(f"segments must be int64, got {segments.dtype}")


def _check_reference(
    objective: Objective,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ref_logp: Tensor | None,
) -> None:
    name = type(objective).__name__
    if (ref_hidden is None) != (ref_weight is None):
        raise ValueError("ref_hidden and ref_weight go together: give both or neither")
    if ref_hidden is not None and ref_logp is not None:
        raise ValueError("give the reference once: either ref_hidden and ref_weight, or ref_logp")
    if objective.needs_kl and ref_logp is not None:
        raise ValueError(
            f"{name} differentiates the KL to the reference and needs its whole distribution: "
            "give ref_hidden and ref_weight; cached ref_logp cannot replace them"
        )
    if objective.needs_reference and ref_hidden is None and ref_logp is None:
        raise ValueError(f"{name} needs a reference: give ref_hidden and ref_weight, or ref_logp")


def _check_scored(
    targets: Tensor,
    scored: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    token_index: Tensor | None,
) -> None:
    """What would silently give another loss; looked at on a CPU only (no GPU host sync)."""
    if targets.is_cuda or torch.compiler.is_compiling():
        return
    if weights is not None:
        wrong = scored & ~((weights >= 0) & torch.isfinite(weights))
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise ValueError(
                f"weights[{place}] = {float(weights[place])}: weights must be finite and ≥ 0"
            )
    own = targets if token_index is None else targets[token_index]
    ignored = scored & (own == ignore_index)
    if bool(ignored.any()):
        place = int(ignored.nonzero()[0])
        raise ValueError(
            f"targets[{place}] is ignore_index = {ignore_index}, but segments[{place}] scores it"
        )


def _check_any(present: Tensor) -> None:
    """What would silently give a loss of nothing; looked at on a CPU only."""
    if not present.is_cuda and not torch.compiler.is_compiling() and not bool(present.any()):
        raise ValueError("no scored token: every segment is −1 or every weight is 0")


def _check_margins(objective: Objective, margins: Tensor | None) -> None:
    name = type(objective).__name__
    if objective.needs_margins and margins is None:
        raise ValueError(f"{name} has margin_weight > 0 and needs margins, one a pair: (P,)")
    if margins is not None and not objective.needs_margins:
        raise ValueError(f"margins have no effect on {name} without margin_weight > 0")


def _check_groups(objective: Objective, groups: Tensor | None) -> None:
    name = type(objective).__name__
    if objective.needs_groups and groups is None:
        raise ValueError(
            f"{name} has link 'plackett_luce' and needs groups, the number of each pair's: (P,)"
        )
    if groups is not None and not objective.needs_groups:
        raise ValueError(f"groups have no effect on {name} without link 'plackett_luce'")


def _check_reference_point(objective: Objective, point: Tensor | None) -> None:
    name = type(objective).__name__
    if objective.needs_reference_point and point is None:
        raise ValueError(
            f"{name} needs reference_point, (): the mean of Σ (logp − ref_logp) over mismatched "
            "responses, at least 0; or reference_point=False in the objective"
        )
    if point is not None and not objective.needs_reference_point:
        raise ValueError(f"reference_point has no effect on {name}")
    if point is not None and (point.dim() or point.requires_grad):
        raise ValueError("reference_point must be a number without gradient, a () tensor")


def _check_by_pair(margins: Tensor | None, groups: Tensor | None, pairs: int) -> None:
    if margins is not None:
        check_margins(margins, pairs)
    if groups is not None:
        check_groups(groups, pairs)


def _check_whole_sides(objective: Objective) -> None:
    if why := objective.needs_whole_sides:
        raise ValueError(f"sequence_group and {why}, or leave sequence_group out")
