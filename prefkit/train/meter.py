"""What a run says of itself: log lines, and the end of a run whose loss is lost."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from prefkit.train.metrics import (
    MetricWindow,
    NotFiniteError,
    RewardWatch,
    TokenClock,
    TokenCount,
    peak_memory_mb,
)
from prefkit.train.step.batch_loss import BatchLoss

logger = logging.getLogger(__name__)


class Meter:
    """Collects the metrics of batches and writes them into the lines that Trainer logs.

    Args:
        args: `fp16`, `device` and `process_index` are read.
        checkpoint_until: the newest complete checkpoint of at most so many steps, or None.
    """

    def __init__(self, args: Any, checkpoint_until: Callable[[int], Path | None]) -> None:
        self.args, self._checkpoint_until = args, checkpoint_until
        self.clock = TokenClock()
        self._training, self._evaluation = MetricWindow(), MetricWindow()
        self._watch = RewardWatch()
        self._prefix = "eval"  # of the names of the evaluation that runs, or ran last
        self._last_good_step = 0  # of the last log line whose loss was finite

    def add(self, batch: BatchLoss, training: bool) -> None:
        """Adds a batch's metrics to the window of the log line, or of the evaluation."""
        window = self._training if training else self._evaluation
        for name, value in batch.metrics.items():
            count = batch.counts.get(name, batch.items)
            window.add(name, value, count if batch.items else 0)
        if training:
            self.clock.add(batch.tokens)

    def resume(self, step: int, tokens: TokenCount) -> None:
        """Continues a run that was saved at `step`, after `tokens` tokens of all processes."""
        self._last_good_step, self.clock.total = step, tokens

    @contextmanager
    def evaluation(self, prefix: str) -> Iterator[None]:
        """A window of its own for the evaluation inside the block; its time is not the training's.

        Args:
            prefix: of the metrics' names, such as "eval".
        """
        self._prefix, self._evaluation = prefix, MetricWindow()
        start, paused = time.perf_counter(), self.clock.paused
        try:
            yield
        finally:
            # Trainer evaluates each set of a dict inside this block: their time is counted once.
            within = self.clock.paused - paused
            self.clock.pause(time.perf_counter() - start - within)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time of the block out of the tokens a second."""
        start = time.perf_counter()
        yield
        self.clock.pause(time.perf_counter() - start)

    def complete(self, logs: dict[str, float], step: int, accelerator: Accelerator) -> None:
        """Adds the metrics of the window to a log line, of training or of an evaluation.

        Args:
            logs: Trainer's line; changed in place.
            step: optimiser steps so far.
            accelerator: reduces over the processes, each of which must call this.

        Raises:
            NotFiniteError: see `NotFiniteError`; no checkpoint is written.
        """
        self._stop_if_not_finite(logs, step)
        if "loss" in logs:
            means = self._training.means(accelerator)
            # Trainer's own mean over steps is there; ours tells what logging_nan_inf_filter hides.
            self._stop_if_not_finite({"loss": means.pop("loss", 0.0)}, step)
            self._last_good_step = step
            logs.update(means)
            logs["tokens_per_second"] = self.clock.read(accelerator)
            logs["num_tokens"] = self.clock.total.text  # as TRL counts: Σ attention_mask
            logs["num_tokens_read"] = self.clock.total.read
            logs["peak_memory_mb"] = peak_memory_mb(self.args.device)
            self.explain(logs)
        elif "train_loss" in logs:  # the last line of a run: what no line has told yet
            means = self._training.means(accelerator)
            logs.update({name: value for name, value in means.items() if name != "loss"})
        elif f"{self._prefix}_loss" in logs:
            means = self._evaluation.means(accelerator)
            logs.update({f"{self._prefix}_{name}": value for name, value in means.items()})

    def explain(self, logs: Mapping[str, float]) -> None:
        """Says what falling rewards of the chosen answers mean, once (see `RewardWatch`)."""
        if not {"rewards/chosen", "rewards/margins"} <= logs.keys():
            return
        text = self._watch.see(logs["rewards/chosen"], logs["rewards/margins"])
        if text and self.args.process_index == 0:
            logger.warning(text)

    def _stop_if_not_finite(self, logs: Mapping[str, float], step: int) -> None:
        """Ends a run whose loss is lost, at its next log line: no extra sync with the device.

        Raises:
            NotFiniteError: the loss, or (where no gradient scaler probes for it) the gradient.
        """
        names = ("loss", "train_loss") if self.args.fp16 else ("loss", "train_loss", "grad_norm")
        bad = [name for name in names if name in logs and not math.isfinite(logs[name])]
        if not bad:
            return
        good = self._last_good_step
        kept = self._checkpoint_until(good)
        where = f"step {step}" if good + 1 >= step else f"a step from {good + 1} to {step}"
        raise NotFiniteError(
            f"{bad[0]} became {logs[bad[0]]} at {where}; training stopped and the model was not "
            f"saved. The last good checkpoint is {kept or 'none'}. Lower learning_rate"
            " or lengthen warmup_steps; with fp16, use bf16 or float32."
        )
