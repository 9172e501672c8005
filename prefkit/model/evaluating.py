"""A model tried for a moment and then as it was, also one whose weights are of several dtypes."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from prefkit.errors import ModelError


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient inside the block; each module gets its own mode back.

    Module by module: parts that a user keeps in evaluation mode stay there.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def dtypes_of(model: nn.Module) -> list[torch.dtype]:
    """The floating dtypes of a model's parameters, the most frequent first."""
    kinds = Counter(p.dtype for p in model.parameters() if p.is_floating_point())
    return [kind for kind, _ in kinds.most_common()]


def mixing_dtypes(model: nn.Module) -> AbstractContextManager[Any]:
    """Autocast for a model whose weights are of several dtypes: it may run only so; else nothing.

    For what is tried before a run, and does not depend on rounding.
    """
    if len(dtypes_of(model)) < 2:
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)


def check_dtypes(model: nn.Module, autocast: bool) -> None:
    """Refuses weights of several dtypes that the model's own forward cannot multiply.

    Args:
        model: a causal LM whose weights are here.
        autocast: the run has it on, which casts what is multiplied.

    Raises:
        ModelError: see above; names the dtypes and a parameter of each.
    """
    kinds = dtypes_of(model)
    if autocast or len(kinds) < 2 or any(p.is_meta for p in model.parameters()):
        return
    ids = torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)
    try:
        with evaluating(model):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except RuntimeError as error:
        if "dtype" not in str(error):
            return  # of another kind, which what follows names
        named = list(model.named_parameters())
        found = [f"{next(n for n, p in named if p.dtype == kind)} {kind}" for kind in kinds]
        raise ModelError(
            f"The weights of {type(model).__name__} are of several dtypes that it cannot multiply "
            f"({', '.join(found)}). Load it in one dtype (dtype=torch.bfloat16 or float32), or "
            "train in mixed precision (bf16: true)."
        ) from error
