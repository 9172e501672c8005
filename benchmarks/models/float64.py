"""Everything in fp64, whatever a model casts to fp32 in between.

Most models compute their norms, rotary angles and softmaxes in fp32 (`x.to(torch.float32)`), so
that a model in fp64 is exact to 1e-7 only, and rounding hides mistakes smaller than that. Inside
`in_float64` these casts lead to fp64 instead: two computations of the same then differ by 1e-12 and
less, and by 1e-10 is wrong.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _Float64(TorchFunctionMode):
    """Calls that ask for fp32 get fp64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if one is torch.float32 else one for one in args)
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **named)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """A block in which torch has no fp32; models are cast by `in_double`.

    Not within a backward pass: Python that runs there (what gradient checkpointing computes again)
    sees fp32 as ever.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def in_double(model: nn.Module) -> nn.Module:
    """The model with its weights in fp64, in place; its experts by products that have fp64."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # type: ignore[operator]
    return model.double()
