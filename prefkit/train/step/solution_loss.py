"""The loss of a batch of solutions: the negative log-likelihood of the responses' tokens."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from prefkit.loop.forward import ask_head
from prefkit.loss.token_metrics import likeliest
from prefkit.train.checks.best_metric import solution_metrics
from prefkit.train.metrics import TokenCount
from prefkit.train.models.run_models import RunModels
from prefkit.train.run_config import RunConfig
from prefkit.train.step.balancing import balance_of
from prefkit.train.step.batch_loss import BatchLoss, with_balance
from prefkit_kernels import token_stats


class SolutionLoss:
    """−(1 / T) Σ_t log p(y_t | x, y_<t), in nats a token, over T response tokens of the window.

    Args:
        args: `memory_budget`, `head_backend` and `log_entropy` are read.
        models: of the run.
    """

    def __init__(self, args: RunConfig, models: RunModels) -> None:
        self.args, self.models = args, models
        self.metrics = solution_metrics(args.log_entropy)

    def count(self, batches: list) -> int:
        """Response tokens of the batches."""
        return sum(len(batch["targets"]) for batch in batches)

    def turns(self, batch: Any) -> Iterator[Any]:
        """The batch itself: no row is shared by processes."""
        yield batch

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items: Any, steps: int
    ) -> BatchLoss:
        """The loss of a batch of `SolutionCollator` on the device (see `StepLoss`)."""
        positions, targets = inputs["positions"], inputs["targets"]
        tokens, transform = len(targets), self.models.head.transform
        divisor = tokens if num_items is None else num_items
        entropy = ("entropy",) if self.args.log_entropy else ()

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            stats = token_stats(
                hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions),
                weight,
                targets,
                bias=bias,
                outputs=("logp", "max_logp", *entropy),
                detached=entropy,
                **transform.options,
                num_scored=tokens,
                memory_budget=self.args.memory_budget,
                backend=self.args.head_backend,
            )
            assert stats.logp is not None
            total = -stats.logp.sum()
            metrics = {
                "loss": total.detach() / tokens,
                "mean_token_accuracy": likeliest(stats).mean(),
            }
            if stats.entropy is not None:
                metrics["entropy"] = stats.entropy.sum() / tokens
            return total / divisor, metrics

        balance = balance_of(self.models.router, inputs, steps)
        output = ask_head(model, inputs, request, self.models.head, balance)
        assert output.value is not None
        return BatchLoss(
            value=output.value,
            metrics=with_balance(dict(output.extras or {}), self.models.router),
            items=0 if inputs.get("filler") else tokens,
            tokens=TokenCount(inputs["num_tokens"], inputs["text_tokens"]),
            output=output,
            counts={"aux_loss": 1},
        )
