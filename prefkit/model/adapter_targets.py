"""Linear layers that an adapter cannot change: left out where nobody named them, else refused.

An adapter wraps a linear layer, so it works where the model calls that layer as one. Three kinds of
layers are linear by their class and yet no place for an adapter:

- a subclass whose forward gives something else (the routers of Llama-4 and Phi-MoE return tuples,
  DeepSeek-V4's `o_a_proj` multiplies group by group): the run would end in its first forward;
- a layer whose weight the module around it reads past its forward: Mamba's kernels read
  `out_proj.weight`, Gemma-3n in training (not in evaluation) `correction_coefs.weight`. There the
  adapter would train nothing, and yet change what the model computes elsewhere;
- a layer that runs without gradient: those of DeepSeek-V3.2's indexer only choose keys. Its adapter
  would never train, and several processes would wait for its gradient.
"""

import copy
import difflib
import functools
import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prefkit.errors import ModelError

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head
_CHANGES = "its forward returns something else than one vector a token"
_PAST = "a kernel reads its weight past the layer, so an adapter would train nothing"
_STILL = "the layer around it runs without gradient"
# self.out_proj.weight as an argument, a factor or clamped; not its dtype, nor a slice of it.
_READ_PAST = re.compile(r"\bself\.(\w+)\.weight(?=\s*[,)@]|\.(?:clamp|view|reshape|t|T)\b)")


def unfit_layers(model: nn.Module) -> dict[str, str]:
    """Names of the linear layers that no adapter can change, and why, in words.

    Args:
        model: a causal LM without adapter. Its weights are not read.
    """
    found = {}
    for name, module in model.named_modules():
        for leaf, child in module.named_children():
            if not isinstance(child, nn.Linear):
                continue
            path = f"{name}.{leaf}" if name else leaf
            if not _gives_one_vector(child):
                found[path] = _CHANGES
            elif leaf in _read_past(type(module)):  # type: ignore[arg-type]  # classes have hashes
                found[path] = _PAST
            elif _without_gradient(type(module)):
                found[path] = _STILL
    return found


def _gives_one_vector(layer: nn.Linear) -> bool:
    """Whether (1, 2, in) becomes (1, 2, out): tried on the meta device, where nothing is computed.

    Layers of quantisation libraries, whose weights are packed, are theirs to answer for.
    """
    usual = type(layer).forward is nn.Linear.forward
    if usual or type(layer.weight) is not nn.Parameter or not layer.weight.is_floating_point():
        return True
    empty = {name: torch.empty_like(p, device="meta") for name, p in layer.named_parameters()}
    given = torch.empty((1, 2, layer.in_features), dtype=layer.weight.dtype, device="meta")
    try:
        out = torch.func.functional_call(layer, empty, (given,))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(out, Tensor) and out.shape == (1, 2, layer.out_features)


@functools.cache
def _read_past(kind: type[nn.Module]) -> frozenset[str]:
    """Names of the layers whose weights the code of a module reads; none without source."""
    try:
        return frozenset(_READ_PAST.findall(inspect.getsource(kind)))
    except (OSError, TypeError):
        return frozenset()


def _without_gradient(kind: type[nn.Module]) -> bool:
    """Whether a class's forward is decorated with `torch.no_grad()`."""
    cells = getattr(kind.forward, "__closure__", None) or ()
    makers = [getattr(cell.cell_contents, "__self__", cell.cell_contents) for cell in cells]
    return any(isinstance(maker, torch.no_grad | torch.inference_mode) for maker in makers)


def fitted(peft_config: Any, model: nn.Module) -> tuple[Any, list[str]]:
    """An adapter's configuration that touches no unfit layer, and what it leaves out, in words.

    Args:
        peft_config: of PEFT; a copy is changed. One without `target_modules` (prompt learning) is
            returned as it is.
        model: the causal LM that it is for.

    Raises:
        ModelError: the user's own `target_modules` hold such a layer.
    """
    targets = getattr(peft_config, "target_modules", None)
    if not targets or not (unfit := unfit_layers(model)):  # without targets PEFT takes its own
        return peft_config, []
    if not isinstance(targets, str) or targets.lower() != ALL_LINEAR:
        _refuse_named(peft_config, unfit, type(model).__name__)
        return peft_config, []
    words = []
    for reason in dict.fromkeys(unfit.values()):
        leaves = _leaves(name for name, why in unfit.items() if why == reason)
        words.append(f"{', '.join(leaves)} ({reason})")
    changed = copy.copy(peft_config)
    if hasattr(changed, "exclude_modules"):
        changed.exclude_modules = _with_excluded(changed.exclude_modules, _shortest(model, unfit))
    else:  # VeRA
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        linear = [name for name, part in _linear(model) if part is not head]
        changed.target_modules = [name for name in linear if name not in unfit]
    return changed, words


def check_names(peft_config: Any, model: nn.Module) -> None:
    """Refuses names that PEFT would pass over in silence: of no module, or of no parameter.

    Args:
        peft_config: of PEFT; patterns are PEFT's to match.
        model: the causal LM that it is for.

    Raises:
        ModelError: names the nearest that there is.
    """
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    for option, known in (
        ("target_modules", modules),
        ("modules_to_save", modules),
        ("target_parameters", parameters),
    ):
        given = getattr(peft_config, option, None)
        for name in () if given is None or isinstance(given, str) else sorted(given):
            if any(one == name or one.endswith(f".{name}") for one in known):
                continue
            what = "parameter" if option == "target_parameters" else "module"
            near = difflib.get_close_matches(name, _endings(known, name), n=3, cutoff=0.4)
            hint = f" Did you mean: {', '.join(near)}?" if near else ""
            raise ModelError(
                f"{option} name {name!r}, and {type(model).__name__} has no {what} of that name."
                f"{hint}"
            )


def _endings(names: Iterable[str], like: str) -> list[str]:
    """The last parts of names, as many as a name has."""
    parts = like.count(".") + 1
    return sorted({".".join(name.split(".")[-parts:]) for name in names if name})


def _refuse_named(peft_config: Any, unfit: dict[str, str], kind: str) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    for name, reason in unfit.items():
        if check_target_module_exists(peft_config, name):
            leaf = name.rpartition(".")[2]
            raise ModelError(
                f"target_modules hold {name} of {kind}, which an adapter cannot change: {reason}. "
                f"Leave {leaf} out (exclude_modules), or set target_modules to '{ALL_LINEAR}', "
                "which does."
            )


def _linear(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What PEFT calls linear: of torch, or GPT-2's Conv1D."""
    kinds = (nn.Linear, Conv1D)
    return [(name, part) for name, part in model.named_modules() if isinstance(part, kinds)]


def _leaves(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _shortest(model: nn.Module, unfit: dict[str, str]) -> list[str]:
    """The last part of their names, where all linear layers of that name are unfit; else names."""
    fit = _leaves(name for name, _ in _linear(model) if name not in unfit)
    return sorted({leaf if leaf not in fit else name for name in unfit for leaf in _leaves([name])})


def _with_excluded(given: str | list[str] | None, names: list[str]) -> str | list[str]:
    """PEFT's `exclude_modules`, a pattern or a list, with more names."""
    if isinstance(given, str):
        return rf"(?:{given})|(?:.*\.)?(?:{'|'.join(map(re.escape, names))})"
    return [*(given or []), *names]
