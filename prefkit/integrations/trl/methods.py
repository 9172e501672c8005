"""The methods of `trl.DPOTrainer` that prefkit replaces, each beside the one that it replaces.

`inner` is the bound method that TRL has. The subclass (`prefkit.integrations.trl.trainer`) and the
patch (`prefkit.integrations.trl.patching`) both call these; called twice for one call of TRL's, as
when a subclass meets a patched class, they do what they do once.
"""

import copy
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from trl.trainer.dpo_trainer import DataCollatorForPreference, DataCollatorForVisionPreference

from prefkit.errors import ConfigError
from prefkit.integrations.trl import rows
from prefkit.integrations.trl.acceleration import Acceleration
from prefkit.integrations.trl.batch import WEIGHTS
from prefkit.integrations.trl.collator import Collator
from prefkit.integrations.trl.config import Settings
from prefkit.integrations.trl.layout import why_cut
from prefkit.integrations.trl.loss import loss_of_batch, reference_sums
from prefkit.integrations.trl.reference import HeadLost

Inner = Callable[..., Any]


def init(trainer: Any, inner: Inner, *args: Any, **kwargs: Any) -> None:
    """TRL's constructor, and then the fused heads.

    Raises:
        ConfigError: something is asked for that neither TRL nor prefkit can compute here.
        ModelError: a model that is not causal.
    """
    inner(*args, **kwargs)
    _check_beside_images(trainer, trainer.train_dataset, "train")
    _check_beside_images(trainer, trainer.eval_dataset, "eval")
    _fit_collator(trainer)
    _state(trainer).forget_others()
    if _weighted(trainer) and fallback(trainer) is not None:  # said before the first step
        _state(trainer).refuse_weights()


def compute_loss(
    trainer: Any, inner: Inner, model: Any, inputs: dict[str, Any], return_outputs: bool
) -> Any:
    """`_compute_loss`: prefkit's, or TRL's where prefkit has none."""
    state = _state(trainer)
    if (objective := state.objective()) is not None:
        if _weighted(trainer):
            _check_weights(inputs)
        state.note_layout(inputs)
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
    if _weighted(trainer):
        _check_weights(inputs)
    return reference_sums(state, model, inputs)


def precompute_ref_logps(
    trainer: Any, inner: Inner, dataset: Any, name: str, batch_size: int
) -> Any:
    """`_precompute_ref_logps`, which runs before the constructor ends.

    TRL finds what it has computed before by rows and model. Weights in the rows are among those;
    what a collator of the user's weighs by is not, so its sums are of this trainer alone.
    """
    _fit_collator(trainer)
    own = _is_own(trainer.data_collator) and isinstance(dataset, Dataset)
    if own and WEIGHTS in _one_row(trainer, rows.first_row(dataset, name)):
        run = trainer.__dict__.setdefault("_prefkit_run", uuid.uuid4().hex)
        dataset = copy.copy(dataset)
        dataset._fingerprint = Hasher.hash((dataset._fingerprint, run))
    return inner(dataset, name, batch_size)


def prepare_dataset(
    trainer: Any, inner: Inner, dataset: Any, processing_class: Any, args: Any, dataset_name: str
) -> Any:
    """`_prepare_dataset`, and what it leaves out."""
    append_eos, num_proc = Settings.of(args).append_eos, args.dataset_num_proc
    eos = trainer._tokenizer.eos_token or "", trainer._tokenizer.eos_token_id
    dataset = rows.before(dataset, append_eos, dataset_name, eos[0], num_proc)
    dataset = inner(dataset, processing_class, args, dataset_name)
    dataset = rows.after(dataset, dataset_name, eos, args.max_length, num_proc)
    if rows.has_weights(first := rows.first_row(dataset, dataset_name)):
        _expect_weights(trainer, first)
    return dataset


def evaluate(trainer: Any, inner: Inner, eval_dataset: Any = None, *args: Any, **kw: Any) -> Any:
    """`evaluate`, whose rows TRL does not prepare where they have images.

    Raises:
        ConfigError: a stream whose batches accelerate would cut, with prefkit_layout: shared.
    """
    by_name = isinstance(eval_dataset, str)
    if not by_name:
        _check_beside_images(trainer, eval_dataset, "eval")
    given = trainer.eval_dataset if by_name or eval_dataset is None else eval_dataset
    if (reason := why_cut(trainer, given)) is not None:
        _state(trainer).pad(reason)
        _fit_collator(trainer)
    return inner(eval_dataset, *args, **kw)


def set_signature_columns(trainer: Any, inner: Inner) -> None:
    """`_set_signature_columns_if_needed`: the columns that the Trainer leaves in its rows."""
    inner()
    columns = trainer._signature_columns
    columns += [name for name in rows.COLUMNS if name not in columns]


def fallback(trainer: Any) -> str | None:
    """Why TRL computes the loss, in words; None where prefkit does."""
    state = trainer.__dict__.get("_prefkit")
    if state is None:
        return "the trainer was made before patch() was called"
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
    kind, needed = type(trainer.data_collator), is_weighted or layout != "padded"
    if kind is Collator or (kind is DataCollatorForPreference and needed):
        trainer.data_collator = Collator.instead_of(
            trainer.data_collator, weighted=is_weighted, layout=layout
        )


def _expect_weights(trainer: Any, first: dict[str, Any]) -> None:
    """From now on batches have weights: a dataset brings them, of which `first` is a row.

    Raises:
        ConfigError: rows for `evaluate`, which nothing here can weigh.
    """
    if "_prefkit" not in trainer.__dict__:  # the constructor, which has no model yet
        trainer._prefkit_weighted = True
        return
    if _state(trainer).objective() is None:
        _state(trainer).refuse_weights()
    if _is_own(trainer.data_collator):  # whose batches for training may well have none
        _check_weights(_one_row(trainer, first))
        return
    trainer._prefkit_weighted = True
    _fit_collator(trainer)


def _is_own(collator: Any) -> bool:
    """Whether a collator is the user's own."""
    kinds = DataCollatorForPreference, DataCollatorForVisionPreference, Collator
    return type(collator) not in kinds


def _one_row(trainer: Any, row: dict[str, Any]) -> Mapping[str, Any]:
    """What the collator makes of a row."""
    batch: Mapping[str, Any] = trainer.data_collator([copy.deepcopy(row)])
    return batch


def _check_beside_images(trainer: Any, given: Any, name: str) -> None:
    """Rows with images reach the collator as they are, and TRL's own reads nothing of ours.

    Args:
        given: a dataset, several by name, or None.

    Raises:
        ConfigError: something would be dropped.
    """
    if given is None or not trainer._is_vision_dataset:
        return
    if isinstance(given, dict):
        for key, dataset in given.items():
            _check_beside_images(trainer, dataset, key)
        return
    first = rows.first_row(given, name)
    if _is_own(trainer.data_collator):
        if rows.has_weights(first):
            _expect_weights(trainer, first)
        return
    dropped = [column for column in rows.READ if column in first]
    if dropped:
        raise ConfigError(
            f"The {name} dataset has images, and beside them {', '.join(dropped)}: TRL leaves such "
            "rows to its data_collator, which does not read that. Remove the columns (a prefix may "
            f"stand in the prompt), or give a data_collator that puts {WEIGHTS} into its batches."
        )
    if (ends := Settings.of(trainer.args).append_eos) != "auto":
        raise ConfigError(
            f"append_eos is {ends}, which rows with images have not: TRL's data_collator takes "
            "their text as it is. Leave append_eos out, and write the ends into the text."
        )


def _check_weights(inputs: Mapping[str, Any]) -> None:
    """Refuses a batch that has lost the weights of its rows.

    Raises:
        ConfigError: see above.
    """
    if WEIGHTS not in inputs:
        raise ConfigError(
            f"The rows bring token weights, but the data_collator leaves them out. Put {WEIGHTS} "
            "(2B, L), aligned with input_ids, into its batches, or leave data_collator out."
        )
