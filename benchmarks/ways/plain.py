"""Whole logits in memory, as plain torch writes the loss: eager, compiled, and with fp32 logits.

`eager` computes logits in the inputs' dtype and the softmax in fp32, as models and trainers do;
`plain_fp32` multiplies upcast operands, the most exact that plain torch can do in fp32.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.problems import Problem
from benchmarks.ways.base import Outcome, Unavailable, Way, finish

Quantities = tuple[Tensor, Tensor, Tensor | None]


def quantities(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    targets: Tensor,
    ref_logp: Tensor | None,
    with_kl: bool,
    upcast: bool,
) -> Quantities:
    """logp and ref_logp (N,) of the targets, and KL(ref‖policy) (N,) where wanted."""
    column = targets[:, None]
    logp = _log_softmax(hidden, weight, upcast)
    chosen = logp.gather(1, column).squeeze(1)
    if ref_logp is not None:
        return chosen, ref_logp, None
    with torch.no_grad():
        ref = _log_softmax(ref_hidden, ref_weight, upcast)
    kl = (ref.exp() * (ref - logp)).sum(-1) if with_kl else None
    return chosen, ref.gather(1, column).squeeze(1), kl


def _log_softmax(hidden: Tensor, weight: Tensor, upcast: bool) -> Tensor:
    if upcast:
        hidden, weight = hidden.float(), weight.float()
    return (hidden @ weight.T).float().log_softmax(-1)


def _run(problem: Problem, compute: Callable[..., Quantities], upcast: bool = False) -> Outcome:
    logp, ref_logp, kl = compute(
        problem.hidden,
        problem.weight,
        problem.ref_hidden,
        problem.ref_weight,
        problem.targets,
        problem.ref_logp,
        problem.case.loss == "tdpo2",
        upcast,
    )
    return finish(problem, logp, ref_logp, kl)


# A shape compiles anew and is not generalised, as a user's one training shape is not.
_COMPILED = torch.compile(quantities, fullgraph=True, dynamic=False)


def _compiled(problem: Problem) -> Outcome:
    try:
        return _run(problem, _COMPILED)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        first = str(error).strip().splitlines()[0]
        raise Unavailable(f"torch.compile failed here: {first}") from error


PLAIN = (
    Way("eager", "materialised logits, eager", partial(_run, compute=quantities)),
    Way("compiled", "materialised logits, torch.compile", _compiled, compiled=True),
    Way("plain_fp32", "fp32 logits by plain torch", partial(_run, compute=quantities, upcast=True)),
)
