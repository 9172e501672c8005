"""What the options of any run of prefkit share, whatever it learns from: checks and set-up."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments

from prefkit.errors import ConfigError
from prefkit.options.secrets import hidden
from prefkit.train.checks.best_metric import check_evaluation_options
from prefkit.train.checks.data_options import LABELS, check_data_options
from prefkit.train.checks.loading import check_model_kwargs
from prefkit.train.checks.options import check_loggers, check_numbers, check_packages, check_types
from prefkit.train.checks.sharding import check_sharding
from prefkit.train.fields import RunFields

BATCH_SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size")
# Options of transformers: a value of another type would fail far from here.
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("weight_decay", "max_grad_norm", "num_train_epochs"), float),
    **dict.fromkeys(("seed", "data_seed", "gradient_accumulation_steps", "max_steps"), int),
}


@dataclass(kw_only=True)
class RunConfig(RunFields, TrainingArguments):
    """`transformers.TrainingArguments` with prefkit's defaults, every mistake named.

    Attributes:
        given: the options that a command line gave; None where that is not known.

    Raises:
        ConfigError: a value out of range, a package that is missing, options that do not go
            together.
    """

    def __post_init__(self) -> None:
        self.given: Collection[str] | None = None  # no field, which would be an option
        check_types(self, _NUMBERS)
        check_numbers(self)
        check_model_kwargs(self)
        check_evaluation_options(self)
        self._keep_liger_off_the_head()
        if not torch.accelerator.is_available():
            self.use_cpu = True  # said out loud, or transformers refuses bf16 here
            self.dataloader_pin_memory = False  # torch would warn at every epoch
        if self.report_to in (None, [None], "null", ["null"]):
            self.report_to = "none"  # what a bare null or none in a YAML file means
        check_packages(self)
        check_sharding(self)
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{error}") from error
        check_loggers(self.report_to)  # type: ignore[arg-type]
        check_data_options(self)
        if self.label_names is None:
            self.label_names = LABELS

    def to_dict(self) -> dict[str, Any]:
        """As transformers has it, which hides its own tokens from loggers; secrets in mappings too.

        Such as the token in `model_init_kwargs`.
        """
        return {name: hidden(value) for name, value in super().to_dict().items()}

    def __str__(self) -> str:
        """As transformers has it, which hides its own tokens; secrets in mappings too."""
        shown = (
            f"{one.name}={hidden(getattr(self, one.name), one.name)!r}" for one in fields(self)
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    __repr__ = __str__

    @property
    def precomputes_reference(self) -> bool:
        """Whether a reference is computed before training, and not in each step."""
        return False

    def _keep_liger_off_the_head(self) -> None:
        """Liger's kernels serve the model's body; its own loss would take the head's place."""
        if not self.use_liger_kernel:
            return
        asked: dict[str, Any] = dict(self.liger_kernel_config or {})
        for loss in ("fused_linear_cross_entropy", "cross_entropy"):
            if asked.get(loss):
                raise ConfigError(
                    f"liger_kernel_config has {loss}, which replaces the head that the "
                    "loss is computed in. Leave it out: Liger's other kernels are used."
                )
            asked[loss] = False
        self.liger_kernel_config = asked
