"""Variable-length attention a group of branches at a time, with the kernel's own backward.

Only queries, keys, values, outputs and their log-sum-exp are kept for the backward, one for each
token of the row. Keys and values of a group are gathered when it is computed, and once more in the
backward, which adds their gradients up in fp32 or better, group after group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import Packed
from prefkit.model.attention.compute.groups import Group
from prefkit.model.attention.compute.sinks import gradient_of_sinks, sunk

Kernel = Callable[[Tensor, Tensor, Tensor, Packed, float, float | None], Tensor]


class Flash(NamedTuple):
    """A variable-length kernel with its log-sum-exp and its backward, as torch has them.

    Attributes:
        forward: (q, k, v, packed, scale) → out (N, H, d), lse (H, N), whatever backward wants.
        backward: (grad, q, k, v, out, lse, packed, scale, that) → gradients of q, k, v.
    """

    forward: Any
    backward: Any


def _forward(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float) -> tuple[Tensor, ...]:
    out, lse, *state = torch.ops.aten._flash_attention_forward(
        q, k, v, p.cu_queries, p.cu_keys, p.max_queries, p.max_keys, 0.0, True, False,
        scale=scale, **_window(p),
    )  # fmt: skip
    return out, lse, *state[:2]


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, p: Packed,
    scale: float, state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:  # fmt: skip
    grads: tuple[Tensor, ...] = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, p.cu_queries, p.cu_keys, p.max_queries, p.max_keys, 0.0, True,
        *state, scale=scale, **_window(p),
    )  # fmt: skip
    return grads


def _window(p: Packed) -> dict[str, int]:
    return {} if p.window is None else {"window_size_left": p.window - 1, "window_size_right": 0}


TORCH = Flash(_forward, _backward)


def recomputed(kernel: Kernel, softcap: float | None) -> Flash:
    """A kernel that keeps its log-sum-exp to itself: the backward first computes it once more."""

    def forward(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float) -> tuple[Tensor, None]:
        return kernel(q, k, v, p, scale, softcap), None

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: None, p: Packed,
        scale: float, state: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        q, k, v = inputs = tuple(x.detach().requires_grad_() for x in (q, k, v))
        with torch.enable_grad():
            again = kernel(q, k, v, p, scale, softcap)
        return torch.autograd.grad(again, inputs, grad)

    return Flash(forward, backward)


class FlashGroups(torch.autograd.Function):
    """(N, H, d), (N, G, d), (N, G, d), sinks (H,) or None → (N, H, d), in groups that tile N."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None,
        groups: tuple[Group, ...], scale: float, flash: Flash,
    ) -> Tensor:  # fmt: skip
        outs, sums, states = [], [], []
        for group in groups:
            mine = _of_queries(q, group)
            seen = (group.gathered(x) for x in (k, v))
            out, lse, *state = flash.forward(mine, *seen, group.packed, scale)
            if lse is not None and lse.shape != (mine.shape[1], mine.shape[0]):
                raise ValueError(f"a log-sum-exp of shape {tuple(lse.shape)}, not (heads, tokens)")
            outs.append(out)
            sums.append(lse)
            states.append(state)
        out, lse = _whole(outs, 0), None if sums[0] is None else _whole(sums, 1)
        if sinks is not None:
            assert lse is not None, "a kernel that keeps its log-sum-exp to itself has no sinks"
            out, lse = sunk(out.transpose(0, 1), lse, sinks)  # (H, N, d)
            out = out.transpose(0, 1).contiguous()
        ctx.save_for_backward(q, k, v, sinks, out, lse, *(x for state in states for x in state))
        ctx.options = groups, scale, flash
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse, *states = ctx.saved_tensors
        groups, scale, flash = ctx.options
        grad, each = grad.contiguous(), len(states) // len(groups)

        def parts(place: int) -> tuple[Tensor, ...]:
            group = groups[place]
            mine = [_of_queries(x, group) for x in (grad, q, out)]
            own = slice(group.queries.start, group.queries.stop)
            sums = None if lse is None else lse[:, own].contiguous()
            seen = (group.gathered(x) for x in (k, v))
            state = tuple(states[each * place : each * (place + 1)])
            found: tuple[Tensor, ...] = flash.backward(
                *mine[:2], *seen, mine[2], sums, group.packed, scale, state
            )
            return found

        if len(groups) == 1:
            dq, dk, dv = parts(0)
            grads = [dq, groups[0].back(dk), groups[0].back(dv)]
        else:
            kind = torch.promote_types(k.dtype, torch.float32)  # or bf16 would lose some of a sum
            totals = [torch.zeros_like(x, dtype=kind) for x in (k, v)]
            queries = []
            for place, group in enumerate(groups):
                dq, *found = parts(place)
                queries.append(dq)
                for total, more in zip(totals, found, strict=True):
                    group.add(total, more)
            grads = [_whole(queries, 0), *(total.to(k.dtype) for total in totals)]
        of_sinks = None
        if sinks is not None:
            of_sinks = gradient_of_sinks(grad.transpose(0, 1), out.transpose(0, 1), lse, sinks)
        return *grads, of_sinks, None, None, None


def _of_queries(x: Tensor, group: Group) -> Tensor:
    return x[group.queries.start : group.queries.stop]


def _whole(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
