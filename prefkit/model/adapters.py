"""Adapters of PEFT: put on their base model, and copied as they are to be a frozen reference.

The copy is a second adapter on the same base, so it takes the memory of an adapter. Switching to it
and back leaves the policy as it was (`prefkit.model.fsdp_units.adapter_chosen`).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor

from prefkit.errors import ConfigError, ModelError
from prefkit.model.evaluating import evaluating
from prefkit.model.fsdp_units import (
    adapter_chosen,
    only_first_loads,
    same_parts_training,
    trained_without_adapter,
    weights_elsewhere,
)
from prefkit.model.head.fused import is_peft
from prefkit.model.untouched import is_untouched

REFERENCE = "prefkit_reference"  # the name of the frozen adapter; not part of what is saved


def put_adapter(model: Any, folder: str, name: str = "default", trainable: bool = False) -> Any:
    """A model with the adapter of a folder on it.

    Args:
        model: the adapter's base model, or a PEFT model that gets another adapter beside its own.
        folder: folder or Hub name of an adapter.
        name: of the adapter on the model.
        trainable: whether it goes on training.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the adapter does not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError(
            f"{folder} is an adapter, which needs the package peft. Install it with: pip install "
            "'prefkit[peft]'"
        ) from error
    try:
        if not is_peft(model):
            return PeftModel.from_pretrained(
                model, folder, adapter_name=name, is_trainable=trainable
            )
        model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder}: the adapter cannot be put on the model: {reason}") from error
    return model


_sound: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()  # models, and as they were


def check_adapter(model: Any) -> None:
    """Refuses an adapter beside which something else trains, or that adds tokens of its own.

    May be called in every step: what was found sound is looked at again where its adapters or what
    trains of it have changed.

    Raises:
        ModelError: prompt-learning adapters; parameters that train beside the adapter, since they
            would move the reference too.
    """
    # Switching an adapter off and on, as the search below does, goes through every layer.
    trains = tuple(parameter.requires_grad for parameter in model.parameters())
    state = tuple(model.peft_config), tuple(_active(model)), trains
    if _sound.get(model) == state:
        return
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ModelError(
            "Prompt-learning adapters (prompt, prefix, p-tuning) add tokens of their own and cannot"
            " be trained here. Use a weight adapter such as LoRA."
        )
    if outside := trained_without_adapter(model):
        raise ModelError(
            f"{len(outside)} parameters train that the adapter does not hold, such as {outside[0]}:"
            " with the adapter off the model would not stay the reference it is now. Freeze them "
            "(bias='none' in the peft_config; requires_grad_(False)), name their modules in "
            "modules_to_save, which trains copies, or pass ref_model."
        )
    _sound[model] = state


def changes_model(model: Any) -> bool:
    """Whether the adapter changes what the model computes: one that never trained does not.

    True also where its weights do not tell. Where only the first process has them, it tells the
    others.
    """
    found = [None if weights_elsewhere() else not is_untouched(model)]
    if only_first_loads():
        broadcast_object_list(found, from_process=0)
    return bool(found[0])


def freeze_copy(model: Any) -> None:
    """Puts a frozen copy of the adapter, as it is now, beside it: the adapter `REFERENCE`.

    The adapter goes on as it was; what is saved of the model stays that one alone.

    Raises:
        ModelError: several adapters are in use, or PEFT cannot copy this one.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    trained = _only_active(model)
    config = copy.deepcopy(model.peft_config[trained])
    config.inference_mode = True
    for name in ("init_lora_weights", "init_weights"):  # else PiSSA and its like change the base
        if hasattr(config, name):
            setattr(config, name, True)
    try:
        with _frozen_beside(model):
            model.add_adapter(REFERENCE, config)
            _same_dtypes(model, trained)
            weights = get_peft_model_state_dict(
                model, adapter_name=trained, save_embedding_layers=False
            )
            set_peft_model_state_dict(model, weights, adapter_name=REFERENCE)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(_NO_COPY.format(why=first)) from error
    if weights_elsewhere():
        return
    before = _logits(model)
    with adapter_chosen(model, REFERENCE):
        if not torch.equal(before, _logits(model)):
            raise ModelError(_NO_COPY.format(why="the copy computes something else"))


def _same_dtypes(model: Any, trained: str) -> None:
    """PEFT makes a new adapter in float32, whatever the trained one is in."""
    named = dict(model.named_parameters())
    for name, value in named.items():
        if f".{trained}" in name and f".{REFERENCE}" not in name:
            copied = named.get(name.replace(f".{trained}", f".{REFERENCE}"))
            if copied is not None:
                copied.data = copied.data.to(value.dtype)


_NO_COPY = (
    "The adapter already changes the model, or is of a kind whose weights do not tell, so the "
    "reference is a frozen copy of it, which PEFT cannot make: {why}. Merge the adapter first "
    "(prefkit merge) and pass a fresh peft_config, or pass ref_model."
)


def put_reference(model: Any, folder: str) -> None:
    """Puts the adapter of a folder beside the policy's, frozen: the adapter `REFERENCE`.

    Raises:
        ModelError: it does not fit the model.
    """
    with _frozen_beside(model):
        put_adapter(model, folder, REFERENCE)


@contextmanager
def _frozen_beside(model: Any) -> Iterator[None]:
    """The adapter `REFERENCE` that is made in the block does not train, and what trained does.

    What `save_pretrained` saves of the model is without it. One of an earlier trainer goes.
    """
    if REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
    names = list(model.peft_config)
    with same_parts_training(model):
        yield
    for name, value in model.named_parameters():
        if f".{REFERENCE}" in name:
            value.requires_grad_(False)
    model.save_pretrained = partial(type(model).save_pretrained, model, selected_adapters=names)


def _only_active(model: Any) -> str:
    active = _active(model)
    if len(active) != 1:
        raise ModelError(
            f"The model has {len(active)} adapters in use ({', '.join(active)}), and only one can "
            "go on training beside a frozen copy. Merge the others first, or pass ref_model."
        )
    return active[0]


def _active(model: Any) -> list[str]:
    return list(getattr(model, "active_adapters", [model.active_adapter]))


def _logits(model: Any) -> Tensor:
    """(1, 4, V) of a few tokens, in evaluation mode."""
    embeddings = model.get_base_model().get_input_embeddings()
    ids = torch.arange(4, device=embeddings.weight.device).reshape(1, 4)
    with evaluating(model):
        return model(input_ids=ids, use_cache=False).logits
