"""What a model does to its logits after the head: read from the config, then proved by numbers.

Known numbers replace the output of the head, and what the model makes of them must be the
transform that was read (Gemma's softcap, Cohere's and Granite's scale). A model that does anything
else is refused. Where its weights are not here, a small copy of its class takes its place.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prefkit.errors import ModelError
from prefkit.model.evaluating import mixing_dtypes
from prefkit.model.small_copy import small_copy


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """What a model does to `hidden @ weight.T + bias`: first the scale, then the softcap.

    Attributes:
        logit_scale: factor of the logits (Cohere `logit_scale`, 1 / Granite `logits_scaling`).
        softcap: c of c·tanh(logits / c) (Gemma-2, arXiv 2408.00118, section 2), or None.
    """

    logit_scale: float = 1.0
    softcap: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As keyword arguments of `token_stats` and `fused_preference_loss`."""
        return {"logit_scale": self.logit_scale, "softcap": self.softcap}

    def __call__(self, logits: Tensor) -> Tensor:  # any shape, any float dtype
        logits = logits * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _numeric(attribute: object) -> float | None:
    usable = isinstance(attribute, int | float) and not isinstance(attribute, bool) and attribute
    return float(attribute) if usable else None  # type: ignore[arg-type]


# Gemma and most others; RecurrentGemma; xLSTM
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def candidates(config: Any) -> Iterator[LogitTransform]:
    """Transforms the config may mean, the likeliest first."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcaps = (_numeric(getattr(text, key, None)) for key in _SOFTCAPS)
    softcap = next((value for value in softcaps if value is not None), None)
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


def _is_linear(forward: Callable[..., Any], weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `forward(hidden)` is `hidden @ weight.T + bias` on known numbers."""
    width = weight.shape[1]
    ramp = torch.linspace(-1.0, 1.0, 2 * width, device=weight.device)
    hidden = torch.cos(ramp * 7.0).reshape(1, 2, width).to(weight.dtype)
    got, want = forward(hidden), nn.functional.linear(hidden, weight, bias)
    return got.shape == want.shape and torch.allclose(got.float(), want.float(), 1e-2, 1e-2)


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


class _KnownLogits:
    """Returns known numbers in a head's place, and notes what the head was given.

    Attributes:
        seen: shapes of the hidden states, call by call.
        known: (1, 2, V) what was returned.
        is_linear: whether the head itself is one linear layer.
    """

    known: Tensor
    is_linear: bool

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._module, self._inner = name, module, module.forward
        self.seen: list[torch.Size] = []

    def __call__(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        weight: Tensor = self._module.weight  # type: ignore[assignment]  # whole here with FSDP2
        if isinstance(weight, DTensor):
            raise ModelError(
                f"{self._name}: inside the model's forward the weight of its head is still a "
                "shard. With FSDP2, hand over the module that fully_shard was called on last (the "
                "root); leave the head out of tensor-parallel plans."
            )
        self.is_linear = _is_linear(self._inner, weight, getattr(self._module, "bias", None))
        # Logits from -90 to 90: a softcap or scale shows at once, whatever the model's own are.
        vocab = weight.shape[0]
        ramp = torch.linspace(-90.0, 90.0, 2 * vocab, device=weight.device)
        self.known = ramp.reshape(1, 2, vocab).to(weight.dtype)
        self.seen.append(hidden.shape)
        return self.known.clone()


def proved_transform(model: nn.Module, owner: nn.Module, module: nn.Module) -> LogitTransform:
    """The transform that turns known head outputs into the logits `model` really returns.

    Args:
        model: what is called; `owner` or, for a sharded model, the FSDP2 root around it.
        owner: the causal LM that holds the head.
        module: the head.

    Raises:
        ModelError: a head that is called otherwise than once, is not linear, or whose weight is a
            shard even inside the forward; logits that the config does not explain.
    """
    return next(one for one, explains in _tried(model, owner, module) if explains)


def transform_of_class(owner: nn.Module) -> LogitTransform:
    """The transform of a model whose weights are not here: what a small copy of it does, read with
    the numbers of the model's own config (some depend on its width).

    Raises:
        ModelError: logits that the config does not explain; no small copy can be made, or it leaves
            open which of several readings of the config is meant.
    """
    meant = list(candidates(owner.config))
    try:
        small: Any = small_copy(owner, all_sparse=False)
    except Exception as error:  # of any class's own kind
        if len(set(meant)) > 1:
            raise ModelError(_UNKNOWN.format(name=type(owner).__name__)) from error
        return meant[0]
    tried = _tried(small, small, small.get_output_embeddings())
    found = {one for one, (_, explains) in zip(meant, tried, strict=True) if explains}
    if len(found) > 1:
        raise ModelError(_UNKNOWN.format(name=type(owner).__name__))
    return found.pop()


_UNKNOWN = (
    "{name}: its config may mean several things of its logits, its weights are not here to try "
    "which, and no small model of its class shows it. Call prefkit.install(model) where the "
    "weights are in memory: before the model is sharded, without ZeRO-3 and with "
    "fsdp_cpu_ram_efficient_loading: false."
)


def _tried(
    model: nn.Module, owner: nn.Module, module: nn.Module
) -> list[tuple[LogitTransform, bool]]:
    """Each transform that the config may mean, and whether it explains what the model returns."""
    known, logits = _known_and_returned(model, owner, module)
    found = [
        (one, torch.allclose(logits.double(), one(known.double()), rtol=2e-2, atol=1e-2))
        for one in candidates(owner.config)
    ]
    if not any(explains for _, explains in found):
        raise ModelError(
            f"{type(owner).__name__} changes its logits after the head in a way that its config "
            "does not tell (neither a scale nor a tanh softcap): the fused loss would not be this "
            "model's loss. Use another model, or one whose config names the change (logit_scale, "
            "logits_scaling, final_logit_softcapping, logits_soft_cap)."
        )
    return found


def _known_and_returned(
    model: nn.Module, owner: nn.Module, module: nn.Module
) -> tuple[Tensor, Tensor]:
    """(1, 2, V) known numbers in the place of the head's output, and the logits made of them."""
    name, head = type(owner).__name__, _KnownLogits(type(owner).__name__, module)
    device = module.weight.device
    ids = torch.zeros((1, 2), dtype=torch.long, device=device)  # type: ignore[arg-type]
    was_training = owner.training
    owner.eval()
    try:
        with torch.no_grad(), mixing_dtypes(owner), _forward_replaced(module, head):
            mask = torch.ones_like(ids)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        owner.train(was_training)
    if len(head.seen) != 1 or head.seen[0][:-1] != (1, 2) or logits.shape != head.known.shape:
        raise ModelError(
            f"{name} does not call its head once with one vector a token, so the head cannot be "
            "fused. Use an ordinary decoder-only model."
        )
    if not head.is_linear:
        raise ModelError(
            f"{name}: its head ({type(module).__name__}) computes something else than hidden @ "
            "weight.T + bias, so it cannot be fused. Use a model with an ordinary linear head."
        )
    return head.known, logits
