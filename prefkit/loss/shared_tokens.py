"""Tokens that are scores of their own, and may serve several sides: each is computed once.

In a tree of responses one scored token may belong to many pairs. The head's quantities are computed
for the N tokens; a table of T entries (side, token, weight) then says which sides use which, and
objectives read what they always read: a flat stream of T entries.

    (N,) per-token quantities → index → (T,) entries → sides → loss
    (N,) cotangents           ← the sum over a token's entries ←

A token's cotangent is known only when all its pairs are, so its gradient cannot be summed up by
pairs in one pass. It can be made by tokens: every token is a score of its own
(`prefkit_kernels.pair_scores` with N "pairs"), whose gradient is scaled by that cotangent in the
backward. With a KL, a token has one direction as long as all its sides are of one kind, chosen or
rejected: the ratio of the coefficients of log-probability and KL is that of its kind.

So are made, besides trees, all losses that are no functions of a pair's linear margin: of
log-probabilities by themselves the loss may be any function (`prefkit.loss.passes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefkit.loss.margins import Linear
from prefkit_kernels import TokenStats, pair_scores

if TYPE_CHECKING:
    from prefkit.loss.sides import Sides


@dataclass(frozen=True)
class Uses:
    """Which of N tokens each of T entries uses.

    Attributes:
        index: (T,) int64 below N; None = entry t is token t.
        one_sided: no token is used by a chosen and by a rejected side.
    """

    index: Tensor | None
    one_sided: bool = False

    def check(self, targets: Tensor) -> None:
        """Refuses an index that is not one of targets (N,).

        Raises:
            ValueError: not int64, or beyond the tokens (by a device-side assertion on a GPU).
        """
        index = self.index
        if index is None:
            return
        if index.dtype != torch.int64 or index.dim() != 1:
            raise ValueError(
                f"token_index must be (T,) int64, got {tuple(index.shape)} {index.dtype}"
            )
        right = ((index >= 0) & (index < len(targets))).all()
        message = f"token_index must name tokens below {len(targets)}, the length of targets"
        if right.is_cuda:
            torch._assert_async(right, message)
        elif not torch.compiler.is_compiling() and not bool(right):
            raise ValueError(message)

    def spread(self, values: Tensor) -> Tensor:
        """(N,) → (T,), differentiable."""
        return values if self.index is None else _Spread.apply(values, self.index)

    def any(self, flags: Tensor, tokens: int) -> Tensor:
        """(T,) bool → (N,): whether any entry of a token is true."""
        if self.index is None:
            return flags
        counts = torch.zeros(tokens, dtype=torch.int64, device=flags.device)
        return counts.index_put((self.index,), flags.to(torch.int64), accumulate=True) > 0

    def spread_stats(self, stats: TokenStats, scored: Tensor) -> TokenStats:
        """All quantities as (T,), 0 where an entry does not count: others may use its token."""
        if self.index is None:
            return stats
        spread = (None if x is None else torch.where(scored, self.spread(x), 0) for x in stats)
        return TokenStats(*spread)


class _Spread(torch.autograd.Function):
    """values[index]; its gradient adds up in an order of its own, the same bits each time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.tokens = len(values)
        return values.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.tokens).index_put_((index,), grad, accumulate=True), None


def scores_by_token(
    heads: tuple[Tensor, Tensor, Tensor],  # hidden (N, D), weight (V, D), targets (N,)
    uses: Uses,
    linear: Linear | None,
    sides: "Sides",
    passes: str,
    options: Mapping[str, Any],
) -> tuple[Tensor | None, TokenStats]:
    """`pair_scores` with a score for each token.

    Args:
        heads: of `token_stats`.
        uses: of the tokens; with an `index` of None each serves one side.
        linear: the margin, where there is a KL; None = the loss reads log-probabilities alone.
        sides: of the T entries.
        passes, options: of `pair_scores`.

    Returns:
        (P,) scores and (N,) stats without gradient; without a margin, None and stats whose
        log-probabilities have a gradient.
    """
    tokens = len(heads[2])
    each = torch.arange(tokens, device=heads[2].device)
    like = sides.weights.new_ones(tokens)
    if linear is None:
        coefficients = {"logp": like}
    else:
        rejected = uses.any(sides.bucket % 2 == 1, tokens)
        coefficients = {
            name: torch.where(rejected, of_rejected * like, of_chosen * like)
            for name, (of_chosen, of_rejected) in linear.by_kind().items()
        }
    # A process may hold no token of a shared pair, but there is no call without a score.
    found, stats = pair_scores(*heads, each, tokens or 1, coefficients, passes=passes, **options)
    found = found[:tokens]
    if linear is None:
        return None, stats._replace(logp=found)
    return sides.local(sides.weights * uses.spread(found)).sum(1), stats
