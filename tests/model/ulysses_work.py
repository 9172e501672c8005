"""What each process of tests/model/test_ulysses.py runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from prefkit import TDPO, fused_preference_loss
from prefkit.model.attention.compute.ulysses import gather_heads, scatter_heads, ulysses_attention
from prefkit.model.head.fused import install
from prefkit.train.checkpointing.leaving import leave_group
from tests.gloo import join
from tests.train.trainer_cases import tiny_model

# name: (query heads, key heads, tokens of each process)
CASES: dict[str, tuple[int, int, list[int]]] = {
    "a key head each": (4, 2, [5, 5]),
    "as many key heads": (4, 4, [5, 5]),
    "one key head": (4, 1, [5, 5]),
    "three key heads": (12, 3, [5, 5]),
    "uneven": (4, 2, [7, 2]),
    "a process without tokens": (4, 2, [0, 6]),
}
LENGTHS = [11, 8]  # of the whole model's row


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two sequences in a row, the first of 3 tokens."""
    mask = torch.ones(q.shape[2], q.shape[2]).tril().bool()
    mask[3:, :3] = False
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def attention_errors(
    case: tuple[int, int, list[int]], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Differences of this process's tokens to one process, forward and backward, in fp64."""
    heads, kv_heads, lengths = case
    rank, tokens = dist.get_rank(), sum(lengths)
    draw = torch.Generator().manual_seed(5)
    shapes = {"q": (heads, 4), "k": (kv_heads, 4), "v": (kv_heads, 6)}
    whole = {
        name: torch.randn(2, h, tokens, d, generator=draw, dtype=torch.float64).requires_grad_()
        for name, (h, d) in shapes.items()
    }
    upstream = torch.randn(2, heads, tokens, 6, generator=draw, dtype=torch.float64)
    want = attend(*whole.values())
    want.backward(upstream)
    start = sum(lengths[:rank])
    here = slice(start, start + lengths[rank])
    part = {name: x.detach()[:, :, here].clone().requires_grad_() for name, x in whole.items()}
    even = len(set(lengths)) == 1
    got = ulysses_attention(
        attend, *part.values(), dist.group.WORLD, lengths=None if even else lengths
    )
    got.backward(upstream[:, :, here])
    errors = {"out": got - want[:, :, here]}
    for name in whole:
        errors[f"d_{name}"] = part[name].grad - whole[name].grad[:, :, here]
    return {name: float(x.abs().max()) if x.numel() else 0.0 for name, x in errors.items()}


def round_trip(dtype: torch.dtype) -> bool:
    x = torch.randn(1, 4, 3, 5).to(dtype)
    there = scatter_heads(x, dist.group.WORLD)
    return there.shape == (1, 2, 6, 5) and torch.equal(gather_heads(there, dist.group.WORLD), x)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    out = ulysses_attention(causal, query, key, value, dist.group.WORLD, LENGTHS)
    return out.transpose(1, 2).contiguous(), None


def model_errors(checkpointing: bool) -> dict[str, float]:
    """A whole model: body through Ulysses, loss through sequence_group; one process beside it."""
    AttentionInterface.register("ulysses_test", _attention)
    AttentionMaskInterface.register("ulysses_test", lambda *args, **kwargs: None)
    total, rank = sum(LENGTHS), dist.get_rank()
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 200, (1, total), generator=draw)
    segments = torch.tensor([-1] * 4 + [0] * 8 + [1] * 6 + [-1])
    per_token = {
        "targets": ids[0].roll(-1),
        "segments": segments,
        "ref_hidden": torch.randn(total, 16, generator=draw, dtype=torch.float64),
    }
    ref_weight = torch.randn(264, 16, generator=draw, dtype=torch.float64)
    start = sum(LENGTHS[:rank])
    mine = slice(start, start + LENGTHS[rank])
    gradients = []
    for name, here, group in (
        ("sdpa", slice(0, total), None),
        ("ulysses_test", mine, dist.group.WORLD),
    ):
        model = tiny_model(scale=3.0, num_attention_heads=4).double()
        install(model)
        model.set_attn_implementation(name)
        if checkpointing:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        arguments: dict[str, Any] = {key: x[here] for key, x in per_token.items()}
        arguments |= {"objective": TDPO(beta=0.3), "pairs_in_call": 1, "sequence_group": group}

        def request(
            hidden: Tensor, weight: Tensor, bias: Any, arguments: dict[str, Any] = arguments
        ) -> Any:
            out = fused_preference_loss(hidden[0], weight, ref_weight=ref_weight, **arguments)
            return out.loss, {}

        places = torch.arange(total)[None]
        output = model(
            input_ids=ids[:, here],
            position_ids=places[:, here],
            use_cache=False,
            prefkit_request=request,
        )
        output.value.backward()
        for parameter in model.parameters():
            if group is not None:
                dist.all_reduce(parameter.grad)
        gradients.append([output.value.detach(), *(p.grad for p in model.parameters())])
    return {
        str(place): float((ours - want).abs().max() / want.abs().max())
        for place, (want, ours) in enumerate(zip(*gradients, strict=True))
    }


def refusals() -> dict[str, str]:
    group, messages = dist.group.WORLD, {}

    def x(*shape: int) -> Tensor:
        return torch.zeros(shape)

    attempts: dict[str, Callable[[], Any]] = {
        "heads": lambda: ulysses_attention(causal, x(1, 3, 4, 2), *[x(1, 1, 4, 2)] * 2, group),
        "shapes": lambda: ulysses_attention(causal, x(1, 2, 4, 2), *[x(1, 2, 3, 2)] * 2, group),
        "lengths": lambda: scatter_heads(x(1, 2, 4, 2), group, [5, 5]),
        "too few": lambda: gather_heads(x(1, 1, 4, 2), group, [4]),
        "odd": lambda: gather_heads(x(1, 1, 5, 2), group),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def work(rank: int, world: int, folder: str) -> None:
    join(rank, world, folder)
    errors = {
        f"{name}, {attend.__name__}": attention_errors(case, attend)
        for name, case in CASES.items()
        for attend in (causal, packed)
    }
    errors["model"] = model_errors(checkpointing=False)
    errors["model, checkpointing"] = model_errors(checkpointing=True)
    report = {
        "errors": errors,
        "round trip": [round_trip(kind) for kind in (torch.bfloat16, torch.float16, torch.int64)],
        "messages": refusals(),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(report))
    leave_group()
