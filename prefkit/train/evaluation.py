"""How trainers evaluate: rows prepared as for training, and the time is not the training's."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError
from prefkit.model.head.fused import Head, Request, RequestOutput
from prefkit.model.router import Router
from prefkit.train.asking import ask_head
from prefkit.train.balancing import balance_of
from prefkit.train.checks.best_metric import check_best_metric
from prefkit.train.logs import LoggingTrainer
from prefkit.train.metrics import MetricWindow, RewardWatch, TokenClock
from prefkit.train.rows.datasets import plain
from prefkit.train.rows.layout import check_lengths
from prefkit.train.rows.templates import refuse_other_template


class EvaluatingTrainer(LoggingTrainer, ABC):
    """Prepares rows for evaluation and measures them; there are no logits to predict with.

    The subclass sets `head` and `_tokenizer`, has `_prepare` and `_longest`, and calls
    `_start_counting` before any data are read.
    """

    head: Head
    _tokenizer: Any
    router: Router | None = None  # of a mixture of experts whose balance is trained
    sequence_group: dist.ProcessGroup | None = None  # processes that share a row
    layout: Layout = "padded"  # of the batches; a data_collator of the user's own makes its own

    def _start_counting(self) -> None:
        self._windows = {"train": MetricWindow(), "eval": MetricWindow()}
        self._clock, self._watch = TokenClock(), RewardWatch()

    def ask(
        self, model: nn.Module, inputs: Mapping[str, Any], request: Request, num_items: Any
    ) -> RequestOutput:
        """`ask_head` on a batch, with the routers' auxiliary loss where the run has one.

        Args:
            model, inputs, request: see `ask_head`.
            num_items: what the window's mean runs over; None where the batch stands for itself.
        """
        steps = 1 if num_items is None else self.current_gradient_accumulation_steps
        balance = balance_of(self.router, inputs, steps, self.sequence_group)
        return ask_head(model, inputs, request, self.head, balance)

    def add_metrics(self, model: nn.Module, metrics: dict[str, Tensor], count: int) -> None:
        """Adds a batch's metrics, means over `count` pairs or tokens, to the log's window."""
        window = self._windows["train" if model.training else "eval"]
        if (balance := metrics.pop("aux_loss", None)) is not None:
            assert self.router is not None
            metrics["loss"] = metrics["loss"] + self.router.coefficient * balance
            window.add({"aux_loss": balance}, min(count, 1))  # of a batch, as TRL has it
        window.add(metrics, count)

    @abstractmethod
    def _prepare(self, args: Any, rows: Any, name: str) -> Dataset | None:
        """Rows as the trainer reads them, None for None; name: "train", "eval" or "eval_NAME"."""

    def _prepare_eval(self, args: Any, rows: Any, trained: Any) -> Any:
        """Rows to evaluate on, a dict of them or None, beside the training rows as prepared."""
        if isinstance(rows, dict):
            several = rows.items()
            return {k: self._prepare_one(args, part, f"eval_{k}", trained) for k, part in several}
        return self._prepare_one(args, rows, "eval", trained)

    def _prepare_one(self, args: Any, rows: Any, name: str, trained: Any) -> Dataset | None:
        prepared = self._prepare(args, rows, name)
        refuse_other_template(self._tokenizer, args, plain(trained), plain(prepared), name)
        return prepared

    @abstractmethod
    def _longest(self, dataset: Any) -> int:
        """Tokens of the longest sequence of a prepared dataset."""

    def _packed(self, dataset: Any) -> Any:
        """A prepared dataset, in rows of several where the trainer packs."""
        return dataset

    def _metric_names(self, args: Any) -> list[str]:
        """What an evaluation reports, without `eval_`: `loss` first."""
        if hasattr(self, "head"):
            return ["loss", "aux_loss"] if self.router is not None else ["loss"]
        # The model is not there yet: whether it has routers shows when it is.
        asked = str(args.metric_for_best_model).endswith("aux_loss")
        return ["loss", "aux_loss"] if asked and args.router_aux_loss_coef != 0 else ["loss"]

    def _check_best_metric(self, args: Any, eval_dataset: Any, callbacks: Any) -> None:
        """Refuses a metric for the best model that no evaluation makes (`check_best_metric`)."""
        if type(self).evaluate is EvaluatingTrainer.evaluate:  # another one may add its own
            check_best_metric(args, self._metric_names(args), eval_dataset, callbacks)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `ResumableTrainer`.

        Raises:
            ConfigError: nothing complete to resume from, or a metric for the best model that no
                evaluation makes.
            ModelError: the checkpoint was trained against another reference.
        """
        self._check_best_metric(self.args, self.eval_dataset, self.callback_handler.callbacks)
        return super().train(*args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As in Trainer; rows of any format are prepared first.

        Raises:
            ConfigError: sequences longer than the layout, chosen at the beginning, can hold, or
                chats written with another template than the one that trains.
        """
        # The keys of a dict of evaluation sets are names, too: Trainer evaluates each by its own.
        keys = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
        named = isinstance(eval_dataset, str) and eval_dataset in keys
        if eval_dataset is not None and not isinstance(eval_dataset, dict) and not named:
            name, trained = metric_key_prefix, self.train_dataset
            eval_dataset = self._prepare_one(self.args, eval_dataset, name, trained)
            check_lengths(self.layout, self.head.owner, self._longest(eval_dataset))
            eval_dataset = self._packed(eval_dataset)
        self._eval_prefix = metric_key_prefix
        start, paused = time.perf_counter(), self._clock.paused
        self._windows["eval"] = MetricWindow()
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            # Trainer calls this method again for each set of a dict: their time is counted once.
            within = self._clock.paused - paused
            self._clock.pause(time.perf_counter() - start - within)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no logits to return.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "predict returns logits, which are never formed. Use evaluate(rows) for the metrics, "
            "or model.generate to write text."
        )
