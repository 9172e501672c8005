"""Training on a stream: what it excludes, who reads which rows, and where it goes on.

The rows of a stream are shared out among the processes, and each tokenises its own. A checkpoint
holds where each process stood, so that a resumed run reads on from there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from prefkit.data.sources.iterable import SOME, stream_of
from prefkit.data.streamed.rows import StreamedRows
from prefkit.errors import ConfigError
from prefkit.train.checkpointing.whole_weights import WholeWeightsTrainer


def refuse_streams(args: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Refuses what a stream cannot serve, before anything is read of it.

    Args:
        args: a config that has passed its own checks.
        train_dataset, eval_dataset: as given to the trainer.

    Raises:
        ConfigError: a stream without max_steps, with options that need every row beforehand, or to
            evaluate on.
    """
    several = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}
    for name, one in several.items():
        refuse_eval_stream(one, name)
    if stream_of(train_dataset, "train") is None:
        return
    if args.max_steps < 1:
        raise ConfigError(
            "train_dataset is a stream, which has no length, so an epoch has no end. Set max_steps."
        )
    needs_all = ["tokens_per_batch", "precompute_ref_log_probs", "precompute_ref_hidden"]
    needs_all += ["auto_find_batch_size"]
    if found := next((name for name in needs_all if getattr(args, name, None)), None):
        raise ConfigError(
            f"{found} needs to know the rows beforehand, and train_dataset is a stream. Leave "
            f"{found} out, or give some of the rows: {SOME}."
        )
    if args.dataloader_num_workers:
        raise ConfigError(
            "dataloader_num_workers: a stream is read and tokenised in a thread of the training "
            "process, ahead of the step. Leave it out."
        )
    if (order := getattr(args, "train_sampling_strategy", "random")) != "random":
        raise ConfigError(
            f"train_sampling_strategy is {order}, and a stream has the order it comes in (its own "
            ".shuffle(seed=..., buffer_size=...) changes that). Leave train_sampling_strategy out."
        )


def refuse_eval_stream(rows: Any, name: str) -> None:
    """Refuses to evaluate on a stream: it may have no end, and every evaluation would differ.

    Raises:
        ConfigError: see above.
    """
    if stream_of(rows, "train") is not None:
        raise ConfigError(
            f"The {name} rows are a stream, which may have no end. Evaluate on some of them: "
            f"{SOME}."
        )


class StreamingTrainer(WholeWeightsTrainer):
    """A Trainer that reads each process's part of a stream, and can go on where it stood."""

    def get_train_dataloader(self) -> DataLoader:
        """As in Trainer; a stream is not shared out again, since each process has its part of it.

        Raises:
            ConfigError: the processes see the stream in different orders.
        """
        stream = self.train_dataset
        if not isinstance(stream, StreamedRows):
            return super().get_train_dataloader()
        _check_order(stream)
        loader = DataLoader(
            stream, self._train_batch_size, collate_fn=self.data_collator, drop_last=True
        )
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """As in Trainer; what it takes of a stream is used when the next checkpoint is made."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if isinstance(self.train_dataset, StreamedRows):
            self.train_dataset.use(sum(len(batch["pair_index"]) for batch in batches))
        return batches, items

    def _stream_states(self) -> list[Any] | None:
        """Where each process stands in the stream, None without one; every process must ask."""
        if not isinstance(self.train_dataset, StreamedRows):
            return None
        states: list[Any] = [self.train_dataset.state()]
        if self.args.world_size > 1:
            states *= self.args.world_size
            dist.all_gather_object(states, states[self.args.process_index])
        return states

    def _begin_stream(self) -> None:
        """Makes a stream begin at its beginning."""
        if isinstance(self.train_dataset, StreamedRows):
            self.train_dataset.go_to()

    def _go_on_in_stream(self, states: list[Any] | None, folder: Path) -> None:
        """Makes the stream begin where it stood.

        Args:
            states: of `_stream_states`, as the checkpoint holds them.
            folder: the checkpoint.

        Raises:
            ConfigError: the checkpoint is of another number of processes, or of rows that were no
                stream.
        """
        stream = self.train_dataset
        if not isinstance(stream, StreamedRows):
            if states is not None:
                raise ConfigError(
                    f"{folder} is of a run on a stream, and train_dataset is none. Give the stream "
                    "again."
                )
            return
        if states is None or len(states) != self.args.world_size:
            were = "rows that were no stream" if states is None else f"{len(states)} processes"
            raise ConfigError(
                f"train_dataset is a stream for {self.args.world_size} process(es), and {folder} "
                f"is of {were}. Go on as then, or start anew."
            )
        # transformers drops as many batches as have been trained on, unless told not to.
        steps = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step
        batches = 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps
        stream.go_to(states[self.args.process_index], batches * self._train_batch_size)


def _check_order(stream: StreamedRows) -> None:
    """Compares what the processes see of the stream before it is shared out.

    Raises:
        ConfigError: different first rows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, stream.first_rows())
    if any(one != seen[0] for one in seen):
        raise ConfigError(
            "The processes see the stream in different orders, and would train on some rows twice "
            "and on others never. Give its shuffle a seed: .shuffle(seed=42)."
        )
