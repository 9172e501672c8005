"""The language-model head: found, checked by numbers, and fused inside the model's own forward.

A preference loss needs a few numbers a token, not the (tokens, vocabulary) logits. So the head is
asked for those numbers instead: `install` gives the model's `forward` one extra keyword,
`prefkit_request`. While a request is set, the head hands it `(hidden, weight, bias)` and returns an
empty `(..., 0)` tensor in place of the logits. The head is still *called as a module* inside the
wrapped forward, and the result depends on what that call returned, so that hooks of FSDP2, ZeRO-3,
PEFT and autocast see what they always see, forward and backward.

What the model does to its logits afterwards is found and proved in `prefkit.model.head.transform`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.utils import ModelOutput

from prefkit.errors import ModelError
from prefkit.loss.wrappers import check_operands, expect_requests
from prefkit.model.fsdp_units import has_fsdp1, release, weights_elsewhere
from prefkit.model.head.copies import layers_of
from prefkit.model.head.odd import refuse_odd_head, whole_shape
from prefkit.model.head.transform import LogitTransform, proved_transform, transform_of_class

# (hidden (R, L, D), weight (V, D), bias (V,) | None) → (value, further tensors by name)
Request = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
# A router's output a layer, (R·L, E) each → (what is added to the value, further tensors by name)
Balance = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Head:
    """A linear head that can be fused.

    Attributes:
        owner: the causal LM that holds the head (inside any PEFT wrapper).
        module: the linear layer itself, or PEFT's wrapper around several (`layers_of`), whose
            weight is that of the one in use.
        transform: what the model does to its logits.
        vocab_size: rows of the head, padding of the vocabulary included; the weight may be
            partitioned later.
    """

    owner: nn.Module
    module: nn.Module
    transform: LogitTransform
    vocab_size: int


@dataclass
class RequestOutput(ModelOutput):
    """What a forward with a request returns: the request's own result.

    A model output and not a tuple, because the hooks of FSDP2 and DDP and the casts of accelerate
    look through those for the tensors they must see.
    """

    value: Tensor | None = None
    extras: dict[str, Tensor] | None = None


def unwrap(model: nn.Module) -> nn.Module:
    """The causal LM inside distributed, compile and PEFT wrappers.

    Raises:
        ModelError: nn.DataParallel.
    """
    while True:
        inner = _inside(model)
        if inner is None and hasattr(model, "get_base_model"):  # PEFT
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None:
            return model
        model = inner


def peft_model_of(model: nn.Module) -> Any:
    """The PEFT model inside distributed and compile wrappers, or None."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model if is_peft(model) else None


def is_peft(model: Any) -> bool:
    """Whether the model is a PEFT model."""
    return hasattr(model, "disable_adapter") and hasattr(model, "peft_config")


def _inside(model: Any) -> Any:
    """What a distributed or compile wrapper holds, or None."""
    if hasattr(model, "_orig_mod"):  # torch.compile
        return model._orig_mod
    if isinstance(model, nn.DataParallel):
        raise ModelError(
            "nn.DataParallel copies the model to several GPUs in each forward, and the copies do "
            "not answer requests. Wrap it in torch.nn.parallel.DistributedDataParallel instead, "
            "one process a GPU (torchrun --nproc_per_node), or train on one GPU without a wrapper."
        )
    inner = getattr(model, "module", None)  # DDP, FSDP1, DeepSpeed, Fabric
    return inner if isinstance(inner, nn.Module) else None


def _output_layer(owner: Any) -> Any:
    """The module of the head itself, or None."""
    getter = getattr(owner, "get_output_embeddings", None)
    module = getter() if getter is not None else None
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def find_head(model: nn.Module) -> Head:
    """Finds the head and proves that it and the logit transform are what they seem.

    Args:
        model: a causal LM, possibly inside a PEFT or distributed wrapper.

    Raises:
        ModelError: an encoder-decoder; no output embeddings; a head that is not one plain linear
            layer (adapter on the head, quantised weights, extra layers); logits that are not scale
            and softcap of it.
    """
    owner = unwrap(model)
    refuse_encoder_decoder(owner)
    name = type(owner).__name__
    module = _output_layer(owner)
    if module is None:
        raise ModelError(
            f"{name} has no output embeddings: only causal language models with a linear head can "
            "be trained. Load it with AutoModelForCausalLM; for a body and a head of your own see "
            "docs/integrate.md."
        )
    if has_fsdp1(model):
        raise ModelError(
            f"{name} was wrapped by FSDP version 1 before its head was found. Call "
            "prefkit.install(model) before you wrap it, or shard it with fully_shard (FSDP2)."
        )
    for layer in layers_of(module):
        refuse_odd_head(layer, name)
    rows = int(whole_shape(module.weight)[0])
    sharded = isinstance(module.weight, DTensor)  # then each process has its part, loaded or not
    elsewhere = weights_elsewhere() and not sharded
    if module.weight.is_meta or hasattr(module.weight, "ds_id") or elsewhere:
        return Head(owner, module, transform_of_class(owner), rows)  # nothing to compute with here
    # Only through the root do FSDP2's units gather what they hold; elsewhere the owner will do.
    transform = proved_transform(model if sharded else owner, owner, module)
    if sharded:  # as they were: whoever reads the parameters next expects shards
        release(model)
    return Head(owner, module, transform, rows)


def refuse_encoder_decoder(owner: nn.Module) -> None:
    """Refuses a model whose responses would have to be read by another part than their prompts.

    Raises:
        ModelError: T5, BART and their like; not the decoder alone, as in BartForCausalLM.
    """
    if getattr(getattr(owner, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(owner).__name__} is an encoder-decoder: its encoder reads the prompt and its "
            "decoder the response, while rows here are one sequence. Use a decoder-only model."
        )


def _as_before(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward that `install` replaced."""
    inner = module.__dict__.get("_prefkit_inner_forward")
    if inner is not None:
        return inner(*args, **kwargs)
    return type(module).forward(module, *args, **kwargs)


def _requesting_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self:  # accelerate's unwrap_model binds anew what is bound already
            args = args[1:]
        request: Request | None = kwargs.pop("prefkit_request", None)
        if request is not None and not callable(request):
            raise TypeError(f"prefkit_request must be a function, got {request!r}")
        if request is not None and kwargs.get("labels") is not None:
            raise TypeError("labels beside prefkit_request: no logits are there for a loss of them")
        balance: Balance | None = kwargs.pop("prefkit_balance", None)
        if request is None:
            return _as_before(self, *args, **kwargs)
        layers = layers_of(_output_layer(self))
        slot: dict[str, Any] = {"request": request}
        for layer in layers:
            layer._prefkit_slot = slot  # type: ignore[assignment]
        try:
            output = _as_before(self, *args, **kwargs)
        finally:
            for layer in layers:
                del layer._prefkit_slot
        if "result" not in slot:
            raise ModelError(f"{type(self).__name__} did not call its head in this forward.")
        value, extras = slot["result"]
        if balance is not None:  # in here, so that wrappers see its gradient with the value's
            more, named = balance(getattr(output, "router_logits", None))
            value, extras = value + more, {**extras, **named}
        logits = output.logits if hasattr(output, "logits") else output[0]
        # + 0: the second half of the way through the head's output, see `_requesting_head`.
        return RequestOutput(value=value + logits.sum().to(value), extras=extras)

    # The signature for whoever inspects it, but no __wrapped__: accelerate unwraps along that to
    # the innermost function and would silently take the fused head off again.
    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    return forward


def _requesting_head(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    slot = self.__dict__.get("_prefkit_slot")
    if slot is None:
        return _as_before(self, hidden, *args, **kwargs)
    weight: Any = self.weight
    check_operands(hidden, weight)  # a model that was called around its wrapper
    value, extras = _checked(slot["request"](hidden, weight, getattr(self, "bias", None)))
    slot["result"] = value, extras
    # The value leaves by the slot, but its gradient must also come in through this output: FSDP2
    # (as ZeRO-3) gathers the weight for the backward in a hook on the *output* of the module, and
    # a backward that goes round it reads freed memory. So the empty logits depend on the value,
    # and the forward adds their sum, 0, to it. Autograd runs no node before all who use its result
    # have run, hence never the loss's backward before that hook. (hidden[..., :0] would also be a
    # view, which FSDP2 warns of.)
    return hidden.new_empty((*hidden.shape[:-1], 0)) + value.sum()


def _checked(made: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """What a request returned.

    Raises:
        TypeError: anything else than a value and further tensors by name.
        ValueError: a further tensor with a gradient, which hooks on the value would not see.
    """
    pair = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    value, extras = pair
    if not isinstance(value, Tensor) or not isinstance(extras, Mapping):
        raise TypeError(
            "prefkit_request must return (value, extras): a tensor, and a dict of further tensors, "
            f"{{}} where there are none; got {type(made).__name__}"
        )
    for name, tensor in extras.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            raise ValueError(
                f"prefkit_request returned {name} with a gradient: only value may have one. "
                "Detach it, or make it a part of value"
            )
    return value, dict(extras)


def install(model: nn.Module) -> Head:
    """Lets `model(..., prefkit_request=f)` compute on the head's operands instead of on logits.

    With a request the forward returns `RequestOutput(*f(hidden, weight, bias))`; `hidden` has shape
    (R, L, D), `weight` (V, D), `bias` (V,) or None. `prefkit_balance=g` beside it (and
    `output_router_logits=True`) adds what g makes of the routers' outputs. Without a request the
    model behaves as ever: class, state dict and `save_pretrained` are untouched. A copy of it has
    the head, too; one of `torch.load` gets it by another call. Calling it again changes nothing and
    costs nothing. It may be called before the model is wrapped (DDP,
    `fully_shard`, DeepSpeed, torch.compile, PEFT) or after it: then with the wrapper or root, and
    in every process at once.

    Raises:
        ModelError: see `find_head`; a model in nn.DataParallel.
    """
    owner: Any = unwrap(model)
    head = owner.__dict__.get("_prefkit_head")
    if head is None or _output_layer(owner) is not head.module:
        head = owner._prefkit_head = find_head(model)
    _replace_forward(owner, lambda: _requesting_forward(type(owner).forward))
    for layer in layers_of(head.module):  # an adapter that came later has one of its own
        _replace_forward(layer, lambda: _requesting_head)
        expect_requests(layer)
    return head


# Pickle keeps a bound method by the name of its function: one of a file that torch.save wrote comes
# back as the class's own forward, and `install` puts the head in again.
_requesting_head.__name__ = "forward"


def _replace_forward(module: nn.Module, make: Callable[[], Callable[..., Any]]) -> None:
    before = module.__dict__.get("forward")
    from_file = getattr(before, "__func__", None) is type(module).forward
    if "_prefkit_installed" in module.__dict__ and not from_file:
        return
    # Bound methods, not closures: copy.deepcopy then rebinds them to the copy.
    if before is not None and not from_file:
        module._prefkit_inner_forward = before
    module.forward = MethodType(make(), module)
    module._prefkit_installed = True  # type: ignore[assignment]
