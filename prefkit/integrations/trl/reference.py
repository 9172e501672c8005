"""The reference of a trainer of TRL's: a model of its own, or the policy with another adapter.

It runs in the contexts in which TRL runs it, so that it is the same reference.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from prefkit.errors import ModelError
from prefkit.integrations.trl.batch import Scored, read_by_model
from prefkit.model.fsdp_units import release
from prefkit.model.head.fused import Head, unwrap
from prefkit.model.reference.policy import Compute, Reference


class HeadLost(ModelError):
    """A forward that did not answer: something has replaced it since the head was put in."""

    def __init__(self, model: nn.Module) -> None:
        name = type(unwrap(model)).__name__
        super().__init__(f"the forward of {name} was replaced after the trainer was made")


def is_shared(trainer: Any) -> bool:
    """Whether the policy's own model is the reference, with another adapter or none."""
    return trainer.ref_model is None and is_peft_model(trainer.model)


@dataclass
class TrlReference(Reference):
    """The reference of a trainer; what it is asked about is a `Scored` in place of positions.

    Attributes:
        trainer: whose.
    """

    trainer: Any = None

    @classmethod
    def of(cls, trainer: Any, model: nn.Module, head: Head) -> "TrlReference":
        """The reference that `model` is, which has the fused head in it.

        Args:
            model: what is called: the policy where the two share it, maybe in an engine.
            head: that of the model.
        """
        owner = trainer.accelerator.unwrap_model(trainer.model) if is_shared(trainer) else None
        return cls(model, head, owner, trainer=trainer)

    def run(self, inputs: Mapping[str, Any], positions: Any, compute: Compute) -> Any:
        """compute(hidden (N, D), weight (V, D), bias (V,) | None) inside the model's forward.

        Args:
            inputs: TRL's batch.
            positions: a `Scored`.
            compute: runs under the autocast of the forward, if it has one.
        """
        scored: Scored = positions
        got: list[Any] = []

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            rows = scored.pick(hidden).to(weight.device)
            got.append(compute(rows, weight, bias))
            return rows[:0], {}

        policy, args = self.trainer.model, self.trainer.args
        off = contextlib.nullcontext() if self.adapter_owner is None else self._its_adapter()
        uncheckpointed = disable_gradient_checkpointing(policy, args.gradient_checkpointing_kwargs)
        with torch.no_grad(), uncheckpointed, off, read_by_model(inputs) as given:
            self.model(**given, prefkit_request=request)
        if not got:
            raise HeadLost(self.model)
        if self.adapter_owner is None:  # the policy itself would have to gather it again at once
            release(self.model, self._held)
        return got[0]

    @contextlib.contextmanager
    def _its_adapter(self) -> Iterator[None]:
        """The adapter "ref", which TRL makes of one that was trained before, or none.

        What trains and what does not stays as it is, which PEFT would change: FSDP2 settles at a
        unit's first forward what it reduces.
        """
        owner = self.adapter_owner
        flags = [(parameter, parameter.requires_grad) for parameter in owner.parameters()]

        def as_before() -> None:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

        try:
            with use_adapter(owner, "ref" if "ref" in owner.peft_config else None):
                as_before()
                yield
        finally:
            as_before()
