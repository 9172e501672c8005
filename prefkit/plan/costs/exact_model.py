"""The model that torch's memory tracker follows: without data, sharded as accelerate does it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import ConfigError
from prefkit.model.head.fused import unwrap
from prefkit.plan.costs.fake import ATTENTION, materialise, register_attention
from prefkit.plan.inputs.meta_model import build, decoder_layers
from prefkit.plan.inputs.setting import Setting


@dataclass(frozen=True)
class Parts:
    """What is private to torch or may be missing."""

    tracker: Any
    fake_mode: Any
    store: Any
    checkpoint: Any


def import_parts() -> Parts:
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise ConfigError(
            f"--exact needs torch's FSDP memory tracker, which torch {torch.__version__} does not "
            f"have here ({error}). Leave --exact out, or use torch 2.11 to 2.13."
        ) from error
    return Parts(FSDPMemTracker, FakeTensorMode, FakeStore, checkpoint_wrapper)


def sharded_model(
    parts: Parts, config: Any, setting: Setting, layers: int, mesh: Any, trainable: bool
) -> Any:
    """A model without data in the units that accelerate's `fsdp2_prepare_model` makes."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    register_attention()
    lora = setting.lora if trainable else None
    model = build(config, layers=layers, dtype=setting.weights, attention=ATTENTION, lora=lora)
    if not trainable:
        model.requires_grad_(False)
    model.train(trainable)
    if trainable and setting.mixed is not None:
        _raise_trainable(model)
    materialise(model)
    stack = decoder_layers(model)
    if trainable and setting.checkpointing:
        for place, layer in enumerate(stack):
            wrapped = parts.checkpoint(layer, preserve_rng_state=False)
            stack[place] = _Offloaded(wrapped) if setting.offload else wrapped
    reduced = (
        None if setting.mixed is None else torch.float32
    )  # as prefkit.train.sharding.fsdp2 sets it
    policy = MixedPrecisionPolicy(param_dtype=setting.mixed, reduce_dtype=reduced)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    inner: Any = unwrap(model)
    for layer in stack:
        fully_shard(layer, **options)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    norms = [m for m in inner.base_model.children() if "norm" in type(m).__name__.lower()]
    tail = [*norms[-1:], head]
    if head.weight is embedding.weight:
        tail.insert(0, embedding)
    else:
        fully_shard(embedding, **options)
    fully_shard(tail, **options, reshard_after_forward=False)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()  # what is made at first use is not part of a step
            module.reshard()
    return model


def _raise_trainable(model: nn.Module) -> None:
    """accelerate keeps what trains in fp32 under mixed precision."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                module._parameters[name] = nn.Parameter(parameter.data.float())


class _Offloaded(nn.Module):
    """What the wrapped layer's checkpoint saves is elsewhere."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:  # models ask their layers for attributes
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _offloading():
            return self.layer(*args, **kwargs)


@contextlib.contextmanager
def _offloading() -> Iterator[None]:
    """What autograd saves is elsewhere: only its shape stays, as `save_on_cpu` does on a GPU."""

    def pack(tensor: Tensor) -> Any:
        if isinstance(tensor, nn.Parameter):
            return tensor
        return tensor.shape, tensor.dtype

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return torch.empty(packed[0], dtype=packed[1])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
