"""Early stopping that is exact when a run is resumed: the count of failures is in the checkpoint.

transformers keeps the count in each checkpoint's state and, unless told to restore all callbacks as
they were, begins at 0 again.
"""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerState

_COUNT = "early_stopping_patience_counter"


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, which goes on counting where the run stood."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Takes the count of a resumed run over; it is 0 at a run's beginning."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = failures(state) if state.global_step else 0


def stopping_of(args: Any) -> list[EarlyStopping]:
    """The callback that `early_stopping_patience` asks for, if it does."""
    if args.early_stopping_patience is None:
        return []
    return [EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold)]


def failures(state: TrainerState) -> int:
    """Evaluations in a row that were no improvement, as a checkpoint's state has it."""
    kept: Any = state.stateful_callbacks.get(EarlyStopping.__name__, {})  # type: ignore[union-attr]
    return int(kept.get("attributes", {}).get(_COUNT, 0))


def stopped_early(state: TrainerState, args: Any) -> bool:
    """Whether a checkpoint's run had come to its end by early stopping."""
    patience = args.early_stopping_patience
    return patience is not None and failures(state) >= patience
