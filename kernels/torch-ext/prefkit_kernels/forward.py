"""The forward of `token_stats`, and its one pass where the head is frozen.

N scored tokens, D hidden, V classes; one product over all of it is 2NDV operations ("1 unit"). The
statistics cost 1 unit for the policy and 1 for the reference. With a frozen head the gradient of a
statistic is known in the forward up to its cotangent: the same chunk also gives the direction
v_t = ∂stat_t/∂hidden_t (1 unit an output), and the backward only scales rows.

Rows whose target is `ignore_index` are never gathered: a masked token costs nothing.
"""

import torch
from torch import Tensor

from .chunks import Chunks
from .gemm import add_hidden_grad_
from .problem import Problem

_ROWS_AT_ONCE = 4096


def forward(problem: Problem, with_directions: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics, normalisers and, for one pass, directions.

    Returns:
        stats: (K, T) fp32 | fp64, 0 in skipped rows.
        norms: (4, T): max and log-sum of the policy's rows, then of the reference's.
        directions: (number of differentiable outputs, T, D) in the dtype of hidden; (0, T, D)
            without `with_directions`. 0 in skipped rows.
    """
    hidden = problem.policy.hidden
    names = problem.directions if with_directions else ()
    stats = hidden.new_zeros(hidden.shape[0], len(problem.outputs), dtype=problem.dtype)
    norms = stats.new_zeros(hidden.shape[0], 4)
    directions = hidden.new_zeros(len(names), *hidden.shape)
    chunks = Chunks(problem, gradients=len(names), names=names)
    for chunk in chunks:
        for k, name in enumerate(names):
            dz = chunks.dz(chunk, last=k == len(names) - 1)
            row = problem.outputs.index(name)
            values = chunk.stats[row : row + 1]
            cotangents = torch.ones_like(values)
            if dz.shape[1]:
                chunks.kernels.gradient(chunk.rows, (name,), values, chunk.norms, cotangents, dz)
            direction = values.new_empty(values.shape[1], hidden.shape[1])
            add_hidden_grad_(direction, dz, problem.policy.weight, first=True)
            problem.shard.sum_(direction)
            chunks.scored.put_(directions[k], chunk.start, chunk.stop, direction)
        chunks.scored.put_(stats, chunk.start, chunk.stop, chunk.stats.T)
        chunks.scored.put_(norms, chunk.start, chunk.stop, chunk.norms.T)
    return stats.T.contiguous(), norms.T.contiguous(), directions


def scale_directions(
    directions: Tensor,  # (K', T, D)
    cotangents: Tensor,  # (K', T): ∂L/∂stat for the differentiable outputs
    skipped: Tensor,  # (T,) bool: rows whose cotangents do not matter, be they inf or NaN
) -> Tensor:
    """The backward of one pass: dL/d hidden = Σ_k cotangent_k ⊙ direction_k, (T, D).

    Products and sums are in the cotangents' precision (fp16 cannot hold a scaled loss's), by blocks
    of rows, so that no second (T, D) tensor of that precision is held.
    """
    cotangents = cotangents.masked_fill(skipped, 0)
    total = torch.empty_like(directions[0])
    for start in range(0, total.shape[0], _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        block = directions[0, here] * cotangents[0, here, None]
        for direction, cotangent in zip(directions[1:], cotangents[1:], strict=True):
            block.addcmul_(direction[here].to(block.dtype), cotangent[here, None])
        total[here] = block
    return total
