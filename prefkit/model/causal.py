"""Whether a model is causal: whether earlier logits may depend on later tokens.

A loss of log p(y_t | x, y_<t) read off a model that sees y_t itself trains nothing that can be
sampled from. Encoders without a mask (BERT with `is_decoder` off), models with a switch for
bidirectional attention (Gemma, XLM) and prefix models (PaliGemma, CPM-Ant) load as causal ones do,
and only what they compute tells them apart:

1. The later half of a few tokens is changed. Are the earlier logits the same, bit by bit, the model
   is causal.
2. Else the gradient of the earlier logits by the embeddings of the later tokens decides. In a
   causal model it is exactly 0, whatever rounding does: a token that a router sends to another
   expert because other tokens changed the order of a sum moves logits, but no gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prefkit.errors import ModelError
from prefkit.model.attention.layout_row import spread_ids
from prefkit.model.evaluating import evaluating, mixing_dtypes
from prefkit.model.fsdp_units import has_fsdp1, release, weights_elsewhere
from prefkit.model.head.fused import refuse_encoder_decoder, unwrap

# Tokens whose logits are compared, and tokens after them. Few: some models make a mask only for
# rows longer than their window, and look ahead in shorter ones (Doge with sdpa).
_KEPT, _CHANGED = 5, 6
_DRAWS = 3
# What a config calls its switch, the value that makes the model look ahead, and the other one.
_SWITCHES: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("is_decoder", (False,), "True"),
    ("use_bidirectional_attention", (True, "all"), "False"),
    ("causal", (False,), "True"),
    ("is_causal", (False,), "True"),
    ("attn_type", ("bi",), "'uni'"),
)
_FAILURES = (
    AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def check_causal(model: nn.Module) -> bool:
    """Refuses a model that is not a causal language model, before anything is computed with it.

    Weights that are not in this process (meta, ZeRO-3, FSDP1, another process) are not run.

    Args:
        model: with a language-model head, possibly inside a PEFT or distributed wrapper. It is left
            as it was.

    Returns:
        Whether it was tried; False where there is nothing to compute with.

    Raises:
        ModelError: an encoder-decoder; a Reformer; a model that does not run on token ids alone, or
            whose earlier logits depend on later tokens. One without a head is let through.
    """
    owner: Any = unwrap(model)
    refuse_encoder_decoder(owner)
    _refuse_reformer(owner)
    parameters = list(owner.parameters())
    if (
        weights_elsewhere()
        or has_fsdp1(model)
        or any(p.is_meta or hasattr(p, "ds_id") for p in parameters)
    ):
        return False  # nothing to compute with here
    if not hasattr(owner, "get_output_embeddings") or owner.get_output_embeddings() is None:
        return False  # no head: find_head names it
    sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
    # Only through the root do FSDP2's units gather what they hold; elsewhere the owner will do.
    called = model if sharded else owner
    with evaluating(model), mixing_dtypes(owner):
        looks_ahead = _looks_ahead(called, owner, sharded)
    if sharded:  # as they were: whoever reads the parameters next expects shards
        release(model)
    if looks_ahead:
        raise ModelError(_words(owner))
    return True


def _refuse_reformer(owner: nn.Module) -> None:
    if getattr(getattr(owner, "config", None), "model_type", None) == "reformer":
        raise ModelError(
            f"{type(owner).__name__} cannot be trained here: in training it reads only sequences "
            "as long as a multiple of its chunks, or of just one length (axial positions), and "
            "hashes tokens anew in every forward. Use another model."
        )


def _words(owner: nn.Module) -> str:
    """The refusal, with the switch of the config that makes the model look ahead, if there is one.

    A switch changes what the model computes, not what it has learnt: only where it was left at a
    default by mistake does it help.
    """
    config: Any = owner.config.get_text_config()  # type: ignore[union-attr, operator]
    name = type(owner).__name__
    remedy = "Use a causal language model."
    for switch, ahead, other in _SWITCHES:
        value = getattr(config, switch, None)
        if any(value is one or (isinstance(one, str) and value == one) for one in ahead):
            remedy = (
                f"Its config has {switch}={value!r}: load it with {switch}={other} if it was "
                "trained so; else use a causal language model."
            )
            break
    return (
        f"{name} is not causal: its logits for a token depend on later tokens, so every token "
        f"would be scored by a model that has read it. {remedy}"
    )


def _looks_ahead(called: nn.Module, owner: nn.Module, sharded: bool) -> bool:
    """Whether earlier logits depend on later tokens; see the module for how it is found."""
    moved = []
    for draw in range(_DRAWS):
        before, after = _two_rows(owner, draw)
        first, second = (_earlier_logits(called, owner, row) for row in (before, after))
        if torch.equal(first, second):
            return False
        if not sharded and (share := _share_of_later(owner, before)) is not None:
            # A mask that is not quite minus infinity (ProphetNet) lets rounding through.
            return share > (1e-5 if first.dtype.itemsize >= 4 else 1e-3)
        moved.append((first - second).abs() / first.abs().max())
    # No gradient to be had. Rounding may send some tokens elsewhere, but not all of them each time.
    noise = 1e-3 if first.dtype.itemsize >= 4 else 5e-2
    return all(float(off.amax(-1).min()) > noise for off in moved)


def _two_rows(owner: nn.Module, draw: int) -> tuple[Tensor, Tensor]:
    """Two rows of ids, (1, N) int64 each, that differ in all later tokens and in no earlier one."""
    config: Any = owner.config.get_text_config()  # type: ignore[union-attr, operator]
    ids = spread_ids(config, _KEPT + 2 * _CHANGED, draw)
    device = owner.get_input_embeddings().weight.device  # type: ignore[operator]
    kept, one, other = ids.to(device).split([_KEPT, _CHANGED, _CHANGED])
    return torch.cat([kept, one])[None], torch.cat([kept, other])[None]


def _earlier_logits(called: nn.Module, owner: nn.Module, ids: Tensor) -> Tensor:
    """(k, V) logits of the earlier tokens.

    Raises:
        ModelError: the model does not run on token ids alone.
    """
    try:
        output = called(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return output.logits[0, :_KEPT]
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{type(owner).__name__} does not run on token ids and a mask alone: {first}. Use a "
            "model that does, or set it up so."
        ) from error


def _share_of_later(owner: nn.Module, ids: Tensor) -> float | None:
    """The largest gradient by a later token's embedding as a share of that by an earlier one's.

    Returns:
        None where no gradient is to be had: operators without one, or embeddings of other things
        than tokens.
    """
    try:
        with torch.enable_grad(), _embedded_as_leaves(owner) as leaves:
            logits = _earlier_logits(owner, owner, ids)
            probe = torch.cos(torch.arange(logits.numel(), device=logits.device))
            value = (logits.float().flatten() * probe).sum()
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
    except (ModelError, *_FAILURES):
        return None
    shares = []
    for grad in grads:
        # (1, N, D); (N, 1, D) as in XLNet; tokens of its own before ours as in CPM-Ant
        if grad is None or 1 not in grad.shape[:2] or not grad.isfinite().all():
            continue
        size = grad.float().abs().reshape(max(grad.shape[:2]), -1)[-ids.shape[1] :]
        if len(size) < ids.shape[1]:
            continue
        shares.append(size[_KEPT:].max() / size[:_KEPT].max().clamp_min(1e-30))
    return float(torch.stack(shares).max()) if shares else None


@contextmanager
def _embedded_as_leaves(owner: nn.Module) -> Iterator[list[Tensor]]:
    """What the token embeddings return inside the block, each with a gradient of its own."""
    leaves: list[Tensor] = []

    def leaf(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_(True))
        return leaves[-1]

    handle = owner.get_input_embeddings().register_forward_hook(leaf)  # type: ignore[operator]
    try:
        yield leaves
    finally:
        handle.remove()
