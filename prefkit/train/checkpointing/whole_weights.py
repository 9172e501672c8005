"""Loads all weights of a checkpoint, also of models that are saved under other names than theirs.

Mixtures of experts are saved as their family's files have them, an expert a tensor, and hold all
experts of a layer in one. `from_pretrained` converts the names; Trainer does not when it goes on
from a checkpoint or takes the best one, and leaves what it does not find as it is.
"""

from typing import Any

from prefkit.errors import ModelError
from prefkit.model.head.fused import unwrap
from prefkit.train.sharding.fsdp2 import ShardedTrainer


class WholeWeightsTrainer(ShardedTrainer):
    """A Trainer whose checkpoints are loaded whole or refused.

    Raises:
        ModelError: weights of the model are in no file of the checkpoint.
    """

    _loading: str | None = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._loading = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._loading = self.state.best_model_checkpoint
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Called with the names that were not found: they are looked for under converted names."""
        model: Any = unwrap(self.model)  # type: ignore[arg-type]
        model.tie_weights()  # a tied weight is saved once
        tied = set(getattr(model, "all_tied_weights_keys", None) or model._tied_weights_keys or ())
        missing = {name.removeprefix("module.") for name in load_result.missing_keys} - tied
        if not missing:
            return
        assert self._loading is not None
        first = next(model.parameters())
        whole = type(model).from_pretrained(self._loading, dtype=first.dtype)
        found = whole.state_dict()
        lost = sorted(missing - set(found))
        if lost:
            raise ModelError(
                f"{self._loading} holds no weights for {', '.join(lost[:3])}"
                + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
                + ". Start from a checkpoint of this model."
            )
        model.load_state_dict(found)
