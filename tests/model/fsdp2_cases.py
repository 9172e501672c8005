"""Tiny models cut into units of FSDP2 in every layout, and pairs for two ranks to train them on.

The two ranks hold different numbers of pairs.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from prefkit.loss.fused import fused_preference_loss
from prefkit.loss.objectives import DPO, TDPO, Objective
from prefkit.model.head.fused import Head, install
from prefkit.model.reference.policy import Reference
from tests.train.trainer_cases import tiny_model

WORLD = 2
IDS = torch.randint(0, 250, (6, 9), generator=torch.Generator().manual_seed(5))  # three pairs
MINE = ([0, 1], [2])  # pairs of each rank
ONE_EACH = ([0], [1])  # as one pass wants them, if the head is trainable
OBJECTIVES: dict[str, Objective] = {"dpo": DPO(beta=0.5), "tdpo": TDPO(beta=0.5, alpha=0.7)}
BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model is cut into FSDP2 units and trained.

    Attributes:
        family: of `trainer_cases.tiny_model`.
        head: "own" unit, in the "root" group, or in the "tail" group with the last norm.
        trainable: the head learns, or is frozen.
        reshard: `reshard_after_forward` of every unit; None = torch's own choice.
        objective: "dpo" or "tdpo".
        passes: of the loss. "auto" takes two passes on rank 0 and one on rank 1 where the head
            is trainable, for rank 0 holds two pairs; one pass on both where it is frozen.
        checkpointing: gradient checkpointing of the layers.
        steps: backward passes before the gradients are read.
    """

    family: str = "llama"
    head: str = "own"
    trainable: bool = True
    reshard: bool | None = True
    objective: str = "tdpo"
    passes: str = "auto"
    checkpointing: bool = False
    steps: int = 1

    def __str__(self) -> str:
        learns = "trainable" if self.trainable else "frozen"
        parts = [self.family, self.head, learns, f"reshard={self.reshard}", self.objective]
        parts += [self.passes] * (self.passes != "auto")
        parts += ["checkpointing"] * self.checkpointing + ["two-steps"] * (self.steps == 2)
        return "-".join(parts)


PLACES = [(family, place) for family in ("llama", "llama-tied") for place in ("root", "tail")]
PLACES.append(("llama", "own"))
LAYOUTS = [
    Layout(family=family, head=head, trainable=trainable, reshard=reshard)
    for (family, head) in PLACES
    for trainable, reshard in itertools.product((True, False), repeat=2)
]
LAYOUTS += [
    Layout(head=head, passes=passes)
    for head, passes in itertools.product(("own", "root", "tail"), ("one_pass", "two_pass"))
]
LAYOUTS.append(Layout(trainable=False, passes="two_pass"))
LAYOUTS += [Layout(trainable=trainable, objective="dpo") for trainable in (True, False)]
LAYOUTS += [Layout(family="gemma2", head=head, reshard=None) for head in ("tail", "root")]
LAYOUTS += [Layout(family="cohere", head="root", reshard=None), Layout(family="granite")]
LAYOUTS += [Layout(checkpointing=True), Layout(steps=2), Layout(head="tail", steps=2)]


def batch(pairs: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Model inputs, places of the scored tokens, their targets and segments."""
    ids = IDS[[row for pair in pairs for row in (2 * pair, 2 * pair + 1)]]
    targets = torch.full_like(ids, -100)
    targets[:, 2:-1] = ids[:, 3:]
    segments = torch.arange(len(ids))[:, None].expand_as(ids).reshape(-1)
    rows = (targets.reshape(-1) >= 0).nonzero().squeeze(1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs, rows, targets.reshape(-1)[rows], segments[rows]


def loss_of(
    model: nn.Module,
    head: Head,
    reference: Reference,
    pairs: list[int],
    objective: Objective,
    num_pairs: float,
    **options: Any,
) -> Tensor:
    """The loss as the trainer computes it.

    Args:
        model, head, reference: the policy and what it is compared with.
        pairs: those of this rank.
        objective: the loss.
        num_pairs: the mean number of pairs of a rank, by which every rank divides.
        options: `backend` and `passes` of `fused_preference_loss`.
    """
    inputs, rows, targets, segments = batch(pairs)
    terms: dict[str, Any]
    if objective.needs_kl:
        terms = reference.operands(inputs, rows, head.transform, head.vocab_size)
    else:
        terms = {"ref_logp": reference.logp(inputs, rows, targets)}

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        out = fused_preference_loss(
            hidden.reshape(-1, hidden.shape[-1])[rows],
            weight,
            targets,
            segments,
            objective=objective,
            num_pairs=num_pairs,
            bias=bias,
            logit_scale=head.transform.logit_scale,
            softcap=head.transform.softcap,
            **terms,
            **options,
        )
        return out.loss, out.metrics

    return model(**inputs, use_cache=False, prefkit_request=request).value


def shard(
    model: Any,
    mesh: DeviceMesh,
    head: str,
    reshard: bool | None = None,
    policy: MixedPrecisionPolicy | None = None,
) -> Any:
    """`fully_shard` a layer at a time, then the head's group and the root."""
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy or MixedPrecisionPolicy()}
    if reshard is not None:
        options["reshard_after_forward"] = reshard
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in body.model.layers:
        fully_shard(layer, **options)
    if head == "own":
        fully_shard(body.lm_head, **options)
    elif head == "tail":  # as accelerate does it: a tied embedding belongs to the same group
        group = [body.model.norm, body.model.embed_tokens, body.lm_head]
        tied = body.model.embed_tokens.weight is body.lm_head.weight
        fully_shard(group if tied else group[::2], **options)
    return fully_shard(model, **options)


def models(layout: Layout) -> tuple[Any, Any]:
    """A policy and a reference with heads installed, not sharded."""
    policy = tiny_model(layout.family, scale=3.0)
    reference = tiny_model(layout.family, seed=1, scale=3.0).requires_grad_(False)
    install(policy)
    install(reference)
    policy.get_output_embeddings().weight.requires_grad_(layout.trainable)
    if layout.checkpointing:
        policy.train()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    return policy, reference
