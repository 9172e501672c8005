"""The methods of `trl.DPOTrainer` that prefkit replaces, each beside the one that it replaces.

`inner` is the bound method that TRL has. The subclass (`prefkit.integrations.trl.trainer`) and the
patch (`prefkit.integrations.trl.patching`) both call these; called twice for one call of TRL's, as
when a subclass meets a patched class, they do what they do once.
"""

from collections.abc import Callable, Mapping
from typing import Any

from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefkit.errors import ConfigError
from prefkit.integrations.trl import rows
from prefkit.integrations.trl.acceleration import Acceleration
from prefkit.integrations.trl.batch import WEIGHTS
from prefkit.integrations.trl.collator import Collator
from prefkit.integrations.trl.config import Settings
from prefkit.integrations.trl.loss import loss_of_batch, reference_sums
from prefkit.integrations.trl.reference import HeadLost

Inner = Callable[..., Any]


def init(trainer: Any, inner: Inner, *args: Any, **kwargs: Any) -> None:
    """TRL's constructor, and then the fused heads.

    Raises:
        ConfigError: something is asked for that neither TRL nor prefkit can compute here.
    """
    inner(*args, **kwargs)
    _fit_collator(trainer)
    _state(trainer).forget_others()


def compute_loss(
    trainer: Any, inner: Inner, model: Any, inputs: dict[str, Any], return_outputs: bool
) -> Any:
    """`_compute_loss`: prefkit's, or TRL's where prefkit has none."""
    state = _state(trainer)
    if (objective := state.objective()) is not None:
        _check_weights(trainer, inputs)
        try:
            return loss_of_batch(state, objective, model, inputs, return_outputs)
        except HeadLost as error:
            state.leave_to_trl(str(error))
    return inner(model, state.for_trl(inputs), return_outputs)


def compute_ref_log_probs(trainer: Any, inner: Inner, model: Any, inputs: dict[str, Any]) -> Any:
    """`compute_ref_log_probs`, with which TRL precomputes the reference's."""
    state = _state(trainer)
    if state.objective() is None:
        return inner(model, state.for_trl(inputs))
    _check_weights(trainer, inputs)
    return reference_sums(state, model, inputs)


def precompute_ref_logps(trainer: Any, inner: Inner, *args: Any, **kwargs: Any) -> Any:
    """`_precompute_ref_logps`, which runs before the constructor ends."""
    _fit_collator(trainer)
    return inner(*args, **kwargs)


def prepare_dataset(
    trainer: Any, inner: Inner, dataset: Any, processing_class: Any, args: Any, dataset_name: str
) -> Any:
    """`_prepare_dataset`, and what it leaves out."""
    tokenizer = trainer._tokenizer
    append_eos = Settings.of(args).append_eos
    dataset = rows.before(dataset, append_eos, dataset_name, tokenizer.eos_token or "")
    dataset = inner(dataset, processing_class, args, dataset_name)
    dataset = rows.after(dataset, dataset_name, tokenizer.eos_token_id)
    trainer._prefkit_weighted = _weighted(trainer) or rows.has_weights(next(iter(dataset)))
    return dataset


def set_signature_columns(trainer: Any, inner: Inner) -> None:
    """`_set_signature_columns_if_needed`: the columns that the Trainer leaves in its rows."""
    inner()
    columns = trainer._signature_columns
    columns += [name for name in rows.COLUMNS if name not in columns]


def fallback(trainer: Any) -> str | None:
    """Why TRL computes the loss, in words; None where prefkit does."""
    state = _state(trainer)
    return None if state.objective() is not None else state.reason


def _state(trainer: Any) -> Acceleration:
    """Made when it is first asked for: TRL may precompute the reference in its constructor."""
    state = trainer.__dict__.get("_prefkit")
    if state is None:
        state = trainer._prefkit = Acceleration(trainer)
    return state


def _weighted(trainer: Any) -> bool:
    """Whether a dataset brings weights."""
    return bool(trainer.__dict__.get("_prefkit_weighted"))


def _fit_collator(trainer: Any) -> None:
    """Puts ours in the place of TRL's own collator, where batches need more than that makes."""
    layout, is_weighted = _state(trainer).layout, _weighted(trainer)
    if type(trainer.data_collator) is DataCollatorForPreference and (
        is_weighted or layout != "padded"
    ):
        trainer.data_collator = Collator.instead_of(
            trainer.data_collator, weighted=is_weighted, layout=layout
        )


def _check_weights(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Refuses a batch that has lost the weights of its rows.

    Raises:
        ConfigError: see above.
    """
    if _weighted(trainer) and WEIGHTS not in inputs:
        raise ConfigError(
            f"The rows bring token weights, but the data_collator leaves them out. Put {WEIGHTS} "
            "(2B, L), aligned with input_ids, into its batches, or leave data_collator out."
        )
