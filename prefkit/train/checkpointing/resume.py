"""A Trainer whose checkpoints are complete or refused, and whose resumed runs are exact.

Everything here is about files; what is trained is `prefkit.train.trainer`'s business.
"""

import json
import logging
import math
import time
import zlib
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from prefkit.errors import ConfigError, ModelError
from prefkit.files.atomic import write_json
from prefkit.train.checkpointing import checkpoint
from prefkit.train.metrics import TokenClock
from prefkit.train.rows.datasets import plain
from prefkit.train.rows.streaming import StreamingTrainer

logger = logging.getLogger(__name__)

STATE = "prefkit_state.json"


class ResumableTrainer(StreamingTrainer):
    """Adds complete checkpoints, `resume_from_checkpoint="auto"` and an atomic final save.

    The subclass sets `_reference_id`, a hash of the reference (or None), and `_clock`, which counts
    tokens, before training.
    """

    _reference_id: str | None = None
    started_at = 0  # the step that the last call of `train` began after
    _last_good_step = 0  # of the last log line whose loss was finite
    _clock: TokenClock

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains; `resume_from_checkpoint` may be True, "auto" or a folder.

        Raises:
            ConfigError: nothing complete to resume from (see `checkpoint.resolve_resume`).
            ModelError: the checkpoint was trained against another reference.
        """
        folder = checkpoint.resolve_resume(
            resume_from_checkpoint, Path(self.args.output_dir or "."), logger.warning
        )
        self.started_at = 0
        if folder is None:
            self._begin_stream()
        else:
            self._load_state(Path(folder))
            state = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
            self._last_good_step = self.started_at = state.global_step
            if self._is_finished(Path(folder)):
                return self._as_it_ended(Path(folder))
        self._clock.restart()
        return super().train(folder, trial, ignore_keys_for_eval)

    def _is_finished(self, folder: Path) -> bool:
        """Whether the checkpoint is the run's last: Trainer would train one step too many."""
        steps = self.args.max_steps
        if steps < 1:
            batch = self._train_batch_size * self.args.world_size
            pairs = len(self.train_dataset)  # type: ignore[arg-type]
            batches = pairs // batch if self.args.dataloader_drop_last else math.ceil(pairs / batch)
            epoch = max(math.ceil(batches / self.args.gradient_accumulation_steps), 1)
            steps = math.ceil(self.args.num_train_epochs * epoch)
        return TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step >= steps

    def _as_it_ended(self, folder: Path) -> TrainOutput:
        """The model and state of a finished run."""
        self.prepare_policy()
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        logger.warning("The run was finished at step %d: nothing to train.", self.state.global_step)
        return TrainOutput(self.state.global_step, sum(losses) / max(len(losses), 1), {})

    def _load_state(self, folder: Path) -> None:
        path = folder / STATE
        state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if state.get("reference", self._reference_id) != self._reference_id:
            raise ModelError(
                f"{folder} was trained against another reference model. Start from the same model "
                "and ref_model as then (the checkpoint's own weights are loaded afterwards)."
            )
        if state.get("rows", self._dealing()) != self._dealing():
            raise ConfigError(
                f"{folder} was trained with other packed rows (tokens_per_batch, layout, seed, "
                "pad_to_multiple_of, sequence_parallel_size): going on would repeat some pairs and "
                "leave out others. Set them as they were."
            )
        if state.get("chat_template", self._template()) != self._template():
            raise ConfigError(
                f"{folder} was trained on messages that another chat template had written. Give "
                "the chat_template, or the tokenizer, of then."
            )
        self._go_on_in_stream(state.get("stream"), folder)
        self._clock.total = int(state.get("num_tokens", 0))

    def _dealing(self) -> list[Any] | None:
        """What decides which pairs share a row; None where rows are not packed."""
        rows = getattr(self.train_dataset, "rows", None)
        return None if rows is None else [len(rows), zlib.crc32(json.dumps(rows).encode())]

    def _template(self) -> int | None:
        """Tells chat templates apart; None where no row holds messages."""
        used = getattr(plain(self.train_dataset), "chat_template", None)
        return None if used is None else zlib.crc32(json.dumps(used).encode())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves as Trainer does, then marks the checkpoint complete, then deletes old ones."""
        start = time.perf_counter()
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                checkpoint.begin(folder)
                # Before any process looks: Trainer notes the best checkpoint where it is one.
                folder.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        streams = self._stream_states()
        if self.args.should_save:
            state = {
                "reference": self._reference_id,
                "num_tokens": self._clock.seen(),
                "rows": self._dealing(),
                "chat_template": self._template(),
                "stream": streams,
            }
            write_json(folder / STATE, state)
            checkpoint.mark_complete(folder)
            best = self.state.best_model_checkpoint
            checkpoint.rotate(run_dir, limit, Path(best) if best else None)
        self._clock.pause(time.perf_counter() - start)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model; outside checkpoints, no file is ever seen half written."""
        if _internal_call or getattr(self, "deepspeed", None) is not None:
            super().save_model(output_dir, _internal_call)
            return
        target = Path(output_dir or self.args.output_dir or ".")
        # Whole weights whatever checkpoints hold: shards are no model folder.
        weights = self.whole_weights() if self.is_fsdp2 else None
        if self.args.should_save:
            checkpoint.save_atomically(lambda folder: self._save(folder, weights), target)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
