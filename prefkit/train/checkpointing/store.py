"""The checkpoints of a run: complete or refused, and a resumed run is exact.

Beside what Trainer saves, a checkpoint has a file of what must be the same, or is gone on with,
when a run resumes from it.
"""

import json
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from prefkit.errors import ConfigError, ModelError
from prefkit.files.atomic import write_json
from prefkit.train.checkpointing import checkpoint
from prefkit.train.checkpointing.early_stopping import stopped_early
from prefkit.train.meter import Meter
from prefkit.train.metrics import TokenCount
from prefkit.train.models.run_models import RunModels
from prefkit.train.models.synced import load_reference, save_reference
from prefkit.train.rows import streaming
from prefkit.train.rows.datasets import plain

logger = logging.getLogger(__name__)

STATE = "prefkit_state.json"


class CheckpointStore:
    """Saves the checkpoints of a run, finds the one to resume from and deletes old ones.

    Args:
        args: of the run.
        models: a run goes on against the same reference (`reference_id`), where it stood.
        meter: its count of tokens is saved and resumed.
    """

    def __init__(self, args: Any, models: RunModels, meter: Meter) -> None:
        self.args, self.models, self.meter = args, models, meter
        self.started_at = 0  # the step that the last call of `resume` found
        self.stopped_early = False  # and whether the run had been stopped there
        self.loading: str | None = None  # the folder that weights are being loaded from

    def resume(self, request: str | bool | None, rows: Any, batch_size: int) -> Path | None:
        """Finds the checkpoint that a run goes on from, and puts the run where it stood.

        Args:
            request: see `checkpoint.resolve_resume`.
            rows: the training rows; a stream is set to where it stood, or to its beginning.
            batch_size: of one process and one forward.

        Returns:
            The folder; None for a run from the beginning.

        Raises:
            ConfigError: nothing complete to resume from, or rows that are not those of then.
            ModelError: the checkpoint was trained against another reference.
        """
        found = checkpoint.resolve_resume(
            request, Path(self.args.output_dir or "."), logger.warning
        )
        self.started_at, self.stopped_early = 0, False
        if found is None:
            streaming.start(rows)
            return None
        folder = Path(found)
        path = folder / STATE
        state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._check_state(state, folder, rows)
        if self.models.reference_moves and self.models.reference is not None:
            load_reference(self.models.reference, folder)
        trained = _trainer_state(folder)
        step = trained.global_step
        # transformers drops as many batches as have been trained on, unless told not to.
        batches = 0 if self.args.ignore_data_skip else step * self.args.gradient_accumulation_steps
        streaming.resume(rows, state.get("stream"), folder, self.args, batches * batch_size)
        count = int(state.get("num_tokens", 0))
        self.meter.resume(step, TokenCount(int(state.get("num_tokens_read", count)), count))
        self.started_at, self.stopped_early = step, stopped_early(trained, self.args)
        return folder

    def _check_state(self, state: dict[str, Any], folder: Path, rows: Any) -> None:
        """Compares a checkpoint's state with this run's; files of earlier versions lack keys."""
        reference, dealt, template = self.models.reference_id, _dealing(rows), _template(rows)
        if state.get("reference", reference) != reference:
            raise ModelError(
                f"{folder} was trained against another reference model. Start from the same model "
                "and ref_model as then (the checkpoint's own weights are loaded afterwards)."
            )
        if state.get("rows", dealt) != dealt:
            raise ConfigError(
                f"{folder} was trained with other packed rows (tokens_per_batch, layout, seed, "
                "pad_to_multiple_of, sequence_parallel_size): going on would repeat some pairs and "
                "leave out others. Set them as they were."
            )
        if state.get("chat_template", template) != template:
            raise ConfigError(
                f"{folder} was trained on messages that another chat template had written. Give "
                "the chat_template, or the tokenizer, of then."
            )

    def is_finished(self, rows: Any, batch_size: int) -> bool:
        """Whether the run resumed is at its last step: Trainer would train one step too many."""
        if self.stopped_early:
            return True
        args = self.args
        steps = args.max_steps
        if steps < 1:
            batch = batch_size * args.world_size
            pairs = len(rows)
            batches = pairs // batch if args.dataloader_drop_last else math.ceil(pairs / batch)
            epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
            steps = math.ceil(args.num_train_epochs * epoch)
        return self.started_at >= steps

    @contextmanager
    def saving(
        self, folder: Path, state: TrainerState, rows: Any, accelerator: Accelerator
    ) -> Iterator[None]:
        """Around Trainer's own save: marks the checkpoint complete, then deletes old ones.

        Args:
            folder: of the checkpoint; what an interrupted save left there is deleted.
            state: Trainer's, which changes during the save.
            rows: the training rows.
            accelerator: of the run, each of whose processes must come here.
        """
        args = self.args
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            if args.should_save:
                checkpoint.delete(folder)
                # Before any process looks: Trainer notes the best checkpoint where it is one.
                folder.mkdir(parents=True)
            accelerator.wait_for_everyone()
            yield
        finally:
            args.save_total_limit = limit
        if self.models.reference_moves and self.models.reference is not None:
            save_reference(self.models.reference, folder, args.should_save)
        accelerator.wait_for_everyone()
        streams, seen = streaming.states(rows, args), self.meter.clock.seen()
        if args.should_save:
            own = {
                "reference": self.models.reference_id,
                "num_tokens": seen.text,
                "num_tokens_read": seen.read,
                "rows": _dealing(rows),
                "chat_template": _template(rows),
                "stream": streams,
            }
            write_json(folder / STATE, own)
            checkpoint.mark_complete(folder)
            best = state.best_model_checkpoint
            checkpoint.rotate(folder.parent, limit, Path(best) if best else None)


def finished(folder: Path) -> tuple[TrainerState, TrainOutput]:
    """State and result of a run whose last checkpoint this is."""
    state = _trainer_state(folder)
    losses = [line["loss"] for line in state.log_history if "loss" in line]
    logger.warning("The run was finished at step %d: nothing to train.", state.global_step)
    return state, TrainOutput(state.global_step, sum(losses) / max(len(losses), 1), {})


def _trainer_state(folder: Path) -> TrainerState:
    return TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))


def _dealing(rows: Any) -> list[Any] | None:
    """What decides which pairs share a row; None where rows are not packed."""
    dealt = getattr(rows, "rows", None)
    return None if dealt is None else [len(dealt), zlib.crc32(json.dumps(dealt).encode())]


def _template(rows: Any) -> int | None:
    """Tells chat templates apart; None where no row holds messages."""
    used = getattr(plain(rows), "chat_template", None)
    return None if used is None else zlib.crc32(json.dumps(used).encode())
