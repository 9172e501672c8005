"""The models of a run, and what was found out of them when they were set up."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from prefkit.model.head.fused import Head
from prefkit.model.reference.head import ReferenceHead
from prefkit.model.reference.policy import Reference
from prefkit.model.router import Router


@dataclass
class RunModels:
    """The policy, its reference and their heads; the trainer and its parts share one of these.

    Args:
        policy: what trains, its adapter applied, its head fused.
        head: the policy's.
        router: of a mixture of experts whose balance is trained, or None.
        reference: the frozen reference; None where the loss reads none, or when it is cached.
        reference_id: a hash of the reference and its precision; None without one.
        reference_head: what is left of a reference whose hidden states are cached.
        start: the policy as the reference of rows that come before its first step, where it is the
            reference and its cache trains; None else.
        reference_moves: the reference follows the policy, so checkpoints hold it.
    """

    policy: nn.Module
    head: Head
    router: Router | None = None
    reference: Reference | None = None
    reference_id: str | None = None
    reference_head: ReferenceHead | None = None
    start: Reference | None = None
    reference_moves: bool = False

    @property
    def config(self) -> Any:
        """The policy's configuration: of the model that has the head."""
        return self.head.owner.config
