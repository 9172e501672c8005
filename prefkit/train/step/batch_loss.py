"""What the loss of one batch leaves behind, and what a trainer asks of a loss."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefkit.model.head.fused import RequestOutput
from prefkit.model.router import Router
from prefkit.train.metrics import TokenCount


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch and its metrics.

    Args:
        value: () fp32, what is differentiated: this batch's part of the window's mean.
        metrics: () fp32 each, detached: means over the items of the batch; `aux_loss`, where the
            run trains a router's balance, is the batch's own.
        items: pairs or response tokens that the metrics are means over; 0 for a batch that only
            fills an evaluation up.
        tokens: of the batch.
        output: of the model's forward.
        counts: what single metrics are means over where that is not `items`: groups of pairs,
            responses, scored tokens.
    """

    value: Tensor
    metrics: dict[str, Tensor]
    items: int
    tokens: TokenCount
    output: RequestOutput
    counts: Mapping[str, int | Tensor] = field(default_factory=dict)


def items_of_window(items: int, accelerator: Accelerator, device: torch.device) -> Any:
    """Items of an accumulation window, averaged over processes: a number or a () tensor.

    The data-parallel mean of gradients divides by the number of processes once more, so the sum
    over all items of the window divided by all of them is what comes out.
    """
    if accelerator.num_processes == 1:
        return float(items)
    # Left on the device: asking for the number would stall a GPU every step.
    return accelerator.gather(torch.tensor([float(items)], device=device)).mean()


class StepLoss(Protocol):
    """A loss as a trainer uses it: `PairLoss` or `SolutionLoss`."""

    metrics: list[str]  # that an evaluation reports, without `eval_` and `aux_loss`; `loss` first

    def count(self, batches: list) -> int:
        """Items of the batches of an accumulation window: what its mean runs over."""

    def turns(self, batch: Any) -> Iterator[Any]:
        """The batches that this process has a part in, one after the other."""

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items: Any, steps: int
    ) -> BatchLoss:
        """The loss of one batch.

        Args:
            model: the wrapped model.
            inputs: a batch of the run's collator, on the device.
            num_items: items that the mean runs over, a number or a () tensor; None = the batch's.
            steps: batches of the accumulation window.
        """


def with_balance(metrics: dict[str, Tensor], router: Router | None) -> dict[str, Tensor]:
    """The metrics with the routers' auxiliary loss in `loss`, where the forward made one.

    Beside it, `aux_loss` is a mean over batches (`BatchLoss.counts`), as TRL has it.
    """
    if (balance := metrics.get("aux_loss")) is not None:
        assert router is not None
        metrics["loss"] = metrics["loss"] + router.coefficient * balance
    return metrics
