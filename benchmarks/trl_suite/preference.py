"""`trl.DPOTrainer` as a thin layer over `PreferenceTrainer`: its arguments, options and attributes.

    python -m benchmarks.trl_suite --trainer benchmarks.trl_suite.preference:DPOTrainer

Options keep their names, and docs/from_trl.md says the same for people. What prefkit refuses stays
refused.
"""

import dataclasses
from typing import Any

import trl

from prefkit import PreferenceConfig, PreferenceTrainer
from prefkit.data import PairDataset, TokenizedPair
from prefkit.errors import ConfigError
from prefkit.train.rows.datasets import CachedDataset

# TRL's defaults where prefkit has others. It cuts what is too long, and never stops at a row.
_DEFAULTS: dict[str, Any] = {
    **{"per_device_train_batch_size": 8, "gradient_checkpointing": True, "max_length": 1024},
    **{"too_long": "truncate_end", "empty": "skip", "equal": "skip"},
}
_WITHOUT_EFFECT = ("padding_free", "dataset_num_proc", "truncation_mode", "pad_to_multiple_of")
_REFUSED = {
    "activation_offloading": "prefkit keeps activations where they are made.",
    "pad_token": "Set it on the tokenizer, and give that as processing_class.",
}

# Of TRL's tests on text, those that this trainer does not pass, and why.
_WHOLE = "a stream to evaluate on is read to its end, so its reference can be precomputed"
UNLIKE = {
    **{
        f"test_evaluate_with_eval_dataset[{kind}-True]": _WHOLE
        for kind in ("iterable_dataset", "iterable_dataset_dict", "dict_of_iterable_dataset")
    },
    **{
        f"test_precompute_ref_log_probs_raises_for_iterable_dataset[{kind}]": _WHOLE
        for kind in ("eval", "eval_dict", "eval_iterable_dataset_dict")
    },
    "test_evaluate_precompute_ref_log_probs_after_training_raises": (
        "rows that were evaluated before training have their cache; only others are refused"
    ),
    "test_train_dataset_required": "without rows to train on, a trainer evaluates",
    "test_train_model_dtype": "weights in float16 are refused",
    **dict.fromkeys(("test_tag_added", "test_tag_added_peft"), "the model's tags are prefkit's"),
}


def config_of(args: Any) -> PreferenceConfig:
    """The `PreferenceConfig` of a `trl.DPOConfig`.

    Raises:
        ConfigError: an option that has no place in prefkit.
    """
    usual = trl.DPOConfig(output_dir="unused", use_cpu=args.use_cpu)
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(args)
        if field.init and getattr(args, field.name) != getattr(usual, field.name)
    }
    if given.get("truncation_mode", "keep_start") != "keep_start":
        raise ConfigError("truncation_mode keep_end cuts the question. prefkit cuts ends alone.")
    for name, remedy in _REFUSED.items():
        if given.get(name):
            raise ConfigError(f"{name} has no place in prefkit. {remedy}")
    options = {**_DEFAULTS, "bf16": args.bf16, **given, "output_dir": args.output_dir}
    if options["max_length"] is None:
        options["too_long"] = "error"
    return PreferenceConfig(**{k: v for k, v in options.items() if k not in _WITHOUT_EFFECT})


class DPOTrainer(PreferenceTrainer):
    """See the module."""

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        args = trl.DPOConfig(output_dir="dpo") if args is None else args
        super().__init__(
            model,
            ref_model=ref_model,
            args=config_of(args),
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._each_dataset(lambda dataset, name: _Named.of(dataset))

    @property
    def aux_loss_enabled(self) -> bool:
        return self.router is not None


class _Item(tuple):
    """An item of a data set that also has the columns of TRL's."""

    def __contains__(self, name: object) -> bool:
        return name in ("prompt_ids", "chosen_ids", "rejected_ids")

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        pair: TokenizedPair = self[1]
        side = pair.rejected if key == "rejected_ids" else pair.chosen
        start = int(side.scored.argmax())
        return (side.ids[:start] if key == "prompt_ids" else side.ids[start:]).tolist()


class _Named(PairDataset):
    """Pairs whose items are `_Item`s."""

    @classmethod
    def of(cls, dataset: Any) -> Any:
        """The data set, changed in place where it is one of plain pairs."""
        inner = dataset.dataset if isinstance(dataset, CachedDataset) else dataset
        if type(inner) is PairDataset:
            inner.__class__ = cls
        return dataset

    def __getitem__(self, index: int) -> Any:
        return _Item(super().__getitem__(index))
