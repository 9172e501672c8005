"""The language-model head: found, checked by numbers, and fused inside the model's own forward.

A preference loss needs a few numbers a token, not the (tokens, vocabulary) logits. So the head is
asked for those numbers instead: `install` gives the model's `forward` one extra keyword,
`prefkit_request`. While a request is set, the head hands it `(hidden, weight, bias)` and returns an
empty `(..., 0)` tensor in place of the logits. The head is still *called as a module* inside the
wrapped forward, so that hooks of FSDP2, ZeRO-3, PEFT and autocast see what they always see.

What the model does to its logits afterwards (Gemma's softcap, Cohere's and Granite's scale) is read
from the config and then *proved*: known numbers are sent through the model in the head's place, and
what comes out must be the transform that was read. A model that does anything else is refused.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from prefkit.errors import ModelError

# (hidden (R, L, D), weight (V, D), bias (V,) | None) → (value, further tensors by name)
Request = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """What a model does to `hidden @ weight.T + bias`: first the scale, then the softcap.

    Attributes:
        logit_scale: factor of the logits (Cohere `logit_scale`, 1 / Granite `logits_scaling`).
        softcap: c of c·tanh(logits / c) (Gemma-2, arXiv 2408.00118, section 2), or None.
    """

    logit_scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:  # any shape, any float dtype
        logits = logits * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class Head:
    """A linear head that can be fused.

    Attributes:
        owner: the causal LM that holds the head (inside any PEFT wrapper).
        module: the linear layer itself.
        transform: what the model does to its logits.
    """

    owner: nn.Module
    module: nn.Module
    transform: LogitTransform

    @property
    def vocab_size(self) -> int:
        """Rows of the head, padding of the vocabulary included."""
        return int(self.module.weight.shape[0])  # type: ignore[index]


@dataclass
class RequestOutput(ModelOutput):
    """What a forward with a request returns: the request's own result.

    A model output and not a tuple, because the hooks of FSDP2 and DDP and the casts of accelerate
    look through those for the tensors they must see.
    """

    value: Tensor | None = None
    extras: dict[str, Tensor] | None = None


def unwrap(model: nn.Module) -> nn.Module:
    """The causal LM inside distributed, compile and PEFT wrappers."""
    while True:
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()  # type: ignore[operator]
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(getattr(model, "module", None), nn.Module):  # DDP, DeepSpeed
            model = model.module  # type: ignore[assignment]
        else:
            return model


def find_head(model: nn.Module) -> Head:
    """Finds the head and proves that it and the logit transform are what they seem.

    Args:
        model: a causal LM, possibly inside a PEFT or distributed wrapper.

    Raises:
        ModelError: no output embeddings; a head that is not one plain linear layer (adapter on the
            head, quantised weights, extra layers); logits that are not scale and softcap of it.
    """
    owner = unwrap(model)
    name = type(owner).__name__
    getter = getattr(owner, "get_output_embeddings", None)
    module = getter() if getter is not None else None
    if module is None:
        raise ModelError(
            f"{name} has no output embeddings: only causal language models with a linear head can "
            "be trained. Load it with AutoModelForCausalLM."
        )
    _refuse_odd_head(module, name)
    if module.weight.is_meta or hasattr(module.weight, "ds_id"):
        # Nothing to compute with yet (meta device, ZeRO-3 partition): the config must be believed.
        return Head(owner, module, next(_candidates(owner.config)))
    if module.weight.numel():
        _probe_linear(module, name)
    return Head(owner, module, _proved_transform(owner, module, name))


def _refuse_odd_head(module: nn.Module, name: str) -> None:
    kind = type(module).__name__
    if type(module).__module__.startswith("peft.") or hasattr(module, "base_layer"):
        raise ModelError(
            f"{name}: the head is wrapped by an adapter ({kind}), which the fused head cannot see. "
            "Remove the head (usually 'lm_head') from target_modules and modules_to_save."
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ModelError(
            f"{name}: the head is a {kind}, not a linear layer with one (vocabulary, width) weight."
            " Only linear heads can be fused; use a trainer that forms the logits instead."
        )
    if not weight.is_floating_point():
        raise ModelError(
            f"{name}: the head is quantised ({kind}, {weight.dtype}). Keep the head out of the "
            "quantisation (llm_int8_skip_modules=['lm_head']) or load the model unquantised."
        )


def _numeric(attribute: object) -> float | None:
    usable = isinstance(attribute, int | float) and not isinstance(attribute, bool) and attribute
    return float(attribute) if usable else None  # type: ignore[arg-type]


def _candidates(config: Any) -> Iterator[LogitTransform]:
    """Transforms the config may mean, the likeliest first."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = _numeric(getattr(text, "final_logit_softcapping", None))
    scales = []
    if (value := _numeric(getattr(text, "logits_scaling", None))) is not None:
        scales += [1.0 / value, value]  # Granite divides, HyperCLOVA X multiplies
    for key in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        if (value := _numeric(getattr(text, key, None))) is not None:
            scales.append(value)
    for scale in [*scales, 1.0]:
        yield LogitTransform(logit_scale=scale, softcap=softcap)
    if softcap is not None:
        yield LogitTransform()


def _probe_linear(module: nn.Module, name: str) -> None:
    """Refuses a head whose output is not `hidden @ weight.T + bias` on known numbers."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    width = weight.shape[1]
    ramp = torch.linspace(-1.0, 1.0, 2 * width, device=weight.device)
    hidden = torch.cos(ramp * 7.0).reshape(1, 2, width).to(weight.dtype)
    with torch.no_grad():
        got = module(hidden)
        want = nn.functional.linear(hidden, weight, getattr(module, "bias", None))
    if got.shape != want.shape or not torch.allclose(got.float(), want.float(), 1e-2, 1e-2):
        raise ModelError(
            f"{name}: its head ({type(module).__name__}) computes something else than hidden @ "
            "weight.T + bias, so it cannot be fused. Use a model with an ordinary linear head."
        )


@contextlib.contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module(...)` runs `forward` inside the block; an instance attribute, as `install` uses."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before


def _proved_transform(owner: nn.Module, module: nn.Module, name: str) -> LogitTransform:
    """The transform that turns known head outputs into the logits the model really returns."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    vocab = weight.shape[0]
    # Logits from -90 to 90: a softcap or scale shows at once, whatever the model's own logits are.
    known = torch.linspace(-90.0, 90.0, 2 * vocab, device=weight.device).reshape(1, 2, vocab)
    known = known.to(weight.dtype)
    seen: list[Tensor] = []

    def stand_in(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return known.clone()

    ids = torch.zeros((1, 2), dtype=torch.long, device=weight.device)
    was_training = owner.training
    owner.eval()
    try:
        with torch.no_grad(), _forward_replaced(module, stand_in):
            mask = torch.ones_like(ids)
            logits = owner(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        owner.train(was_training)
    if len(seen) != 1 or seen[0].shape[:-1] != (1, 2) or logits.shape != known.shape:
        raise ModelError(
            f"{name} does not call its head once with one vector a token, so the head cannot be "
            "fused. Use an ordinary decoder-only model."
        )
    for transform in _candidates(owner.config):
        if torch.allclose(logits.double(), transform(known.double()), rtol=2e-2, atol=1e-2):
            return transform
    raise ModelError(
        f"{name} changes its logits after the head in a way that its config does not tell (neither "
        "a scale nor a tanh softcap): the fused loss would not be this model's loss. Use another "
        "model, or one whose config names the change (logit_scale, logits_scaling, "
        "final_logit_softcapping)."
    )


def _requesting_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        request: Request | None = kwargs.pop("prefkit_request", None)
        call = self.__dict__.get("_prefkit_inner_forward") or MethodType(type(self).forward, self)
        if request is None:
            return call(*args, **kwargs)
        head = self.get_output_embeddings()  # type: ignore[operator]
        slot: dict[str, Any] = {"request": request}
        head._prefkit_slot = slot
        try:
            call(*args, **kwargs)
        finally:
            del head._prefkit_slot
        if "result" not in slot:
            raise ModelError(f"{type(self).__name__} did not call its head in this forward.")
        value, extras = slot["result"]
        return RequestOutput(value=value, extras=extras)

    # The signature for whoever inspects it, but no __wrapped__: accelerate unwraps along that to
    # the innermost function and would silently take the fused head off again.
    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    return forward


def _requesting_head(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    slot = self.__dict__.get("_prefkit_slot")
    if slot is None:
        inner = self.__dict__.get("_prefkit_inner_forward")
        return inner(hidden, *args, **kwargs) if inner else type(self).forward(self, hidden)
    slot["result"] = slot["request"](hidden, self.weight, getattr(self, "bias", None))
    return hidden[..., :0]


def install(model: nn.Module) -> Head:
    """Lets `model(..., prefkit_request=f)` compute on the head's operands instead of on logits.

    With a request the forward returns `RequestOutput(*f(hidden, weight, bias))`; `hidden` has shape
    (R, L, D), `weight` (V, D), `bias` (V,) or None. Without one the model behaves as ever:
    class, state dict and `save_pretrained` are untouched. Calling it twice changes nothing.

    Raises:
        ModelError: see `find_head`.
    """
    head = find_head(model)
    if "_prefkit_installed" not in head.owner.__dict__:
        for module in (head.owner, head.module):
            # Bound methods, not closures: copy.deepcopy then rebinds them to the copy.
            if (before := module.__dict__.get("forward")) is not None:
                module._prefkit_inner_forward = before
        outer = _requesting_forward(type(head.owner).forward)
        head.owner.forward = MethodType(outer, head.owner)
        head.module.forward = MethodType(_requesting_head, head.module)
        head.owner._prefkit_installed = True  # type: ignore[assignment]
    return head
