"""What a run says of itself: log lines, and the end of a run whose loss is lost."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from prefkit.train.checkpointing import checkpoint
from prefkit.train.checkpointing.resume import ResumableTrainer
from prefkit.train.metrics import MetricWindow, NotFiniteError, RewardWatch, peak_memory_mb

logger = logging.getLogger(__name__)


class LoggingTrainer(ResumableTrainer):
    """Adds the pairs' metrics to log lines and evaluations.

    The subclass sets `_windows` ("train" and "eval") and `_watch` before training.
    """

    _windows: dict[str, MetricWindow]
    _watch: RewardWatch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the window to a log line, for training as for evaluation."""
        prefix = getattr(self, "_eval_prefix", "eval")
        self._stop_if_not_finite(logs)
        if "loss" in logs:
            means = self._windows["train"].means(self.accelerator)
            # Trainer's own mean over steps is there; ours tells what logging_nan_inf_filter hides.
            self._stop_if_not_finite({"loss": means.pop("loss", 0.0)})
            self._last_good_step = self.state.global_step
            logs.update(means)
            logs["tokens_per_second"] = self._clock.read(self.accelerator)
            logs["num_tokens"] = self._clock.total
            logs["peak_memory_mb"] = peak_memory_mb(self.args.device)
            self._explain(logs)
        elif f"{prefix}_loss" in logs:
            means = self._windows["eval"].means(self.accelerator)
            logs.update({f"{prefix}_{name}": value for name, value in means.items()})
        super().log(logs, start_time)

    def _stop_if_not_finite(self, logs: Mapping[str, float]) -> None:
        """Ends a run whose loss is lost, at its next log line: no extra sync with the device.

        Raises:
            NotFiniteError: the loss, or (where no gradient scaler probes for it) the gradient.
        """
        names = ("loss", "train_loss") if self.args.fp16 else ("loss", "train_loss", "grad_norm")
        bad = [name for name in names if name in logs and not math.isfinite(logs[name])]
        if not bad:
            return
        step, good = self.state.global_step, self._last_good_step
        found = checkpoint.list_checkpoints(Path(self.args.output_dir or "."))
        kept = [
            folder
            for folder in found
            if int(folder.name.split("-")[1]) <= good and checkpoint.problem_with(folder) is None
        ]
        where = f"step {step}" if good + 1 >= step else f"a step from {good + 1} to {step}"
        raise NotFiniteError(
            f"{bad[0]} became {logs[bad[0]]} at {where}; training stopped and the model was not "
            f"saved. The last good checkpoint is {kept[0] if kept else 'none'}. Lower learning_rate"
            " or lengthen warmup_steps; with fp16, use bf16 or float32."
        )

    def _explain(self, logs: dict[str, float]) -> None:
        if "rewards/chosen" not in logs:
            return
        text = self._watch.see(logs["rewards/chosen"], logs["rewards/margins"])
        if text and self.is_world_process_zero():
            logger.warning(text)
