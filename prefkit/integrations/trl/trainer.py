"""TRL's `DPOTrainer` with prefkit's head."""

import functools
from typing import Any

import trl

from prefkit.integrations.trl import methods


class DPOTrainer(trl.DPOTrainer):
    """`trl.DPOTrainer` whose loss is computed inside the model's forward, on the head's operands.

    Arguments, config, data, callbacks, metrics and numbers are TRL's. What prefkit has no loss or
    no head for, TRL computes as ever, and the trainer says so once. Beyond TRL: columns
    `chosen_weights` and `rejected_weights` (a float a token), rows with a `prefix`, whose steps get
    no end-of-sequence token, and the options of `prefkit.integrations.trl.DPOConfig`.

    Raises:
        ConfigError: something is asked for that neither TRL nor prefkit can compute here.
        ModelError: a model that is not causal; see `docs/refused.md`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        methods.init(self, super().__init__, *args, **kwargs)

    @property
    def prefkit_fallback(self) -> str | None:
        """Why TRL computes the loss in its own way, in words; None where prefkit does."""
        return methods.fallback(self)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        return methods.compute_loss(self, super()._compute_loss, model, inputs, return_outputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As TRL's: metrics of a dataset, raw or prepared, or of the trainer's own."""
        found: dict[str, float] = methods.evaluate(self, super().evaluate, *args, **kwargs)
        return found

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """(B,) and (B,) Σ log p of chosen and rejected sides under the reference."""
        inner = super().compute_ref_log_probs
        return methods.compute_ref_log_probs(self, inner, model, inputs)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        return methods.precompute_ref_logps(self, super()._precompute_ref_logps, *args, **kwargs)

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
        return methods.prepare_dataset(self, super()._prepare_dataset, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        methods.set_signature_columns(self, super()._set_signature_columns_if_needed)


functools.update_wrapper(vars(DPOTrainer)["__init__"], trl.DPOTrainer.__init__)  # its arguments
