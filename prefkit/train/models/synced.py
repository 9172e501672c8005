"""A reference that follows the policy: TR-DPO (arXiv 2404.09656).

After every `ref_model_sync_steps` optimiser steps each parameter of the reference becomes

    reference ← α · policy + (1 − α) · reference        α = `ref_model_mixup_alpha`

What it has become cannot be computed again, so each checkpoint holds it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from prefkit.errors import ModelError
from prefkit.model.fsdp_units import release
from prefkit.model.head.fused import unwrap
from prefkit.model.reference.policy import Reference

FILE = "reference.safetensors"  # of a checkpoint


def check_alike(policy: nn.Module, reference: nn.Module) -> None:
    """Refuses a reference whose parameters are not those of the policy, one by one.

    Raises:
        ModelError: see above.
    """
    ours, theirs = (
        {name: tuple(value.shape) for name, value in unwrap(model).named_parameters()}
        for model in (policy, reference)
    )
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                f"sync_ref_model mixes the parameters of policy and reference, and {name} is "
                f"{ours.get(name, 'missing')} in the one and {theirs.get(name, 'missing')} in the "
                "other. Use a reference of the same architecture, or leave ref_model out."
            )


class SyncReference(TrainerCallback):
    """Moves the reference towards the policy.

    Args:
        reference: a model of its own.
        policy: gives the policy as it is sharded now.
    """

    def __init__(self, reference: Reference, policy: Callable[[], Any]) -> None:
        self.reference, self.policy = reference, policy

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the step's checkpoint, which so holds the moved reference."""
        if state.global_step % args.ref_model_sync_steps == 0:
            mix(self.reference.model, self.policy(), args.ref_model_mixup_alpha)


@torch.no_grad()
def mix(reference: nn.Module, policy: nn.Module, alpha: float) -> None:
    """Moves each parameter of the reference; both models whole, or sharded alike."""
    for model in (reference, policy):  # FSDP2 keeps some units gathered, the reference's head too
        release(model)
    pairs = zip(unwrap(reference).parameters(), unwrap(policy).parameters(), strict=True)
    for old, new in pairs:
        old.mul_(1 - alpha).add_(new, alpha=alpha)


def save_reference(reference: Reference, folder: Path, writes: bool) -> None:
    """Writes the reference's weights into a checkpoint; every process must call it.

    Args:
        reference: whole or sharded.
        folder: of the checkpoint.
        writes: whether this process writes it.
    """
    weights = {}
    release(reference.model)
    for name, value in _named(reference.model):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if writes:
            weights[name] = whole.detach().cpu().contiguous()
    if writes:
        save_file(weights, folder / FILE)


@torch.no_grad()
def load_reference(reference: Reference, folder: Path) -> None:
    """Puts the reference where it stood when a checkpoint was made; every process must call it.

    Raises:
        ModelError: the checkpoint holds no reference, or another model's.
    """
    path = folder / FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no {FILE}: the run that wrote it had no sync_ref_model. Leave it out, "
            "or start a new run."
        )
    release(reference.model)
    with safe_open(path, framework="pt") as weights:
        held = set(weights.keys())
        for name, value in _named(reference.model):
            if name not in held:
                raise ModelError(f"{path} lacks {name}: it is of another reference model.")
            whole = weights.get_tensor(name).to(value.device)
            if isinstance(value, DTensor):
                whole = distribute_tensor(whole, value.device_mesh, value.placements)
            value.copy_(whole)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a model by their names without wrappers; tied ones once."""
    for name, value in unwrap(model).named_parameters():
        yield name.replace("_checkpoint_wrapped_module.", ""), value
