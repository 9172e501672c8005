"""`PreferenceConfig`: one flat set of options, checked before any compute is spent.

An option that the chosen method would ignore is an error, not a silent no-op.
"""

from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from prefkit.errors import ConfigError
from prefkit.objectives import DPO, TDPO, Objective, SimPO
from prefkit.schedule import SCHEDULES
from prefkit.train.checks import check_loggers, check_numbers, check_packages, check_types
from prefkit.train.fields import CDPO_POSITION_BETA, DEFAULT_BETA, METHODS, PreferenceFields
from prefkit.train.sequence_parallel import check_sequence_parallel
from prefkit.train.sharding_checks import check_sharding

_CHOICES = {
    "method": METHODS,
    "link": ("sigmoid", "robust", "hinge", "ipo"),
    "reduction": ("sequence", "position"),
    "level": (None, "step", "solution"),
    "too_long": ("error", "skip", "truncate_end"),
    "on_bad_row": ("error", "skip"),
    "string_prompts": ("raw", "chat"),
    "layout": ("auto", "shared", "separate"),
    "head_backend": ("auto", "triton", "torch", "reference"),
    "head_schedule": SCHEDULES,
}
_DPO_ONLY = ("link", "label_smoothing", "length_normalized", "reference_free", "nll_weight")
_DPO_FAMILY = ("dpo", "step-dpo", "scdpo", "cdpo")
_BATCH_SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size")
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("beta", "alpha", "label_smoothing", "margin", "nll_weight"), float),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "num_train_epochs"), float),
    **dict.fromkeys(("positions_per_pair", "max_length", "pad_to_multiple_of"), int),
    **dict.fromkeys(("precompute_ref_batch_size", "memory_budget", "seed", "data_seed"), int),
    **dict.fromkeys((*_BATCH_SIZES, "tokens_per_batch", "sequence_parallel_size"), int),
    **dict.fromkeys(("gradient_accumulation_steps", "max_steps"), int),
}
_POSITIVE = (
    "sequence_parallel_size",
    "tokens_per_batch",
    "max_length",
    "pad_to_multiple_of",
    "memory_budget",
    "precompute_ref_batch_size",
)


@dataclass(kw_only=True)
class PreferenceConfig(PreferenceFields, TrainingArguments):
    """Options of a preference training run; every field is also a key of the YAML and a flag.

    Keyword-only. prefkit's own fields are documented in `prefkit.train.fields.PreferenceFields`,
    all others in `transformers.TrainingArguments`.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    def __post_init__(self) -> None:
        self._check_choices()
        check_types(self, _NUMBERS)
        self._check_numbers()
        check_numbers(self)
        self._check_method()
        self._check_rows()
        self._check_hidden()
        check_sequence_parallel(self)
        self._keep_liger_off_the_head()
        if self.output_dir is None:
            self.output_dir = f"prefkit-output/{self.method}"
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
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor smooths next-token labels, which a preference loss does not"
                " have. Use label_smoothing instead."
            )
        try:
            self.build_objective()
        except ValueError as error:
            raise ConfigError(f"{error}") from error
        if self.label_names is None:
            self.label_names = ["targets"]

    def _check_rows(self) -> None:
        """One packed row a device and forward pass, where rows are packed."""
        if self.tokens_per_batch is None:
            return
        defaults = PreferenceFields()
        for name in _BATCH_SIZES:
            if getattr(self, name) not in (1, getattr(defaults, name)):
                raise ConfigError(
                    f"{name} and tokens_per_batch both say how large a batch is. Leave "
                    f"{name} out: as many pairs as fit are packed into tokens_per_batch tokens."
                )
            setattr(self, name, 1)

    def _keep_liger_off_the_head(self) -> None:
        """Liger's kernels serve the model's body; its own loss would take the head's place."""
        if not self.use_liger_kernel:
            return
        asked = dict(self.liger_kernel_config or {})
        for loss in ("fused_linear_cross_entropy", "cross_entropy"):
            if asked.get(loss):
                raise ConfigError(
                    f"liger_kernel_config has {loss}, which replaces the head that the preference "
                    "loss is computed in. Leave it out: Liger's other kernels are used."
                )
            asked[loss] = False
        self.liger_kernel_config = asked

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                offered = ", ".join(repr(choice) for choice in choices)
                raise ConfigError(f"{name} is {value!r}; it must be one of {offered}.")

    def _check_numbers(self) -> None:
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta is {self.beta}; it must be a positive number, such as 0.1.")
        if self.alpha is not None and not 0 <= self.alpha < float("inf"):
            raise ConfigError(f"alpha is {self.alpha}; it must be 0 or more, such as 0.5.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; it is the probability of a flipped "
                "label and must lie in [0, 0.5)."
            )
        if not 0 <= self.nll_weight < float("inf"):
            raise ConfigError(f"nll_weight is {self.nll_weight}; it must be 0 or more.")
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be positive, or left out.")

    def _check_method(self) -> None:
        """Refuses options that the method does not read, and combinations that cannot work."""
        defaults = PreferenceFields()
        foreign = [] if self.method in _DPO_FAMILY else [*_DPO_ONLY, "reduction"]
        foreign += [] if self.method == "tdpo2" else ["alpha"]
        foreign += [] if self.method in (*_DPO_FAMILY, "simpo") else ["margin"]
        foreign += [] if self.reduction == "position" else ["positions_per_pair"]
        for name in foreign:
            if getattr(self, name) != getattr(defaults, name):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has no effect with method '{self.method}'"
                    f"{' and reduction ' + repr(self.reduction) if 'posi' in name else ''}. "
                    "Remove it, or choose the method that reads it."
                )
        if self.label_smoothing and self.link not in ("sigmoid", "robust"):
            raise ConfigError(
                f"label_smoothing has no effect with link '{self.link}'. Use sigmoid or robust."
            )
        if not self.precompute_ref_log_probs:
            return
        if self.method in ("tdpo1", "tdpo2"):
            raise ConfigError(
                f"precompute_ref_log_probs cannot serve method '{self.method}': its KL needs the "
                "reference's whole distribution at every token, not one log-probability. Remove "
                "precompute_ref_log_probs, or use precompute_ref_hidden (with adapter: lora the "
                "reference costs no memory)."
            )
        if self.method == "simpo" or self.reference_free:
            raise ConfigError(
                "precompute_ref_log_probs is set, but the loss reads no reference. Remove it."
            )

    def _check_hidden(self) -> None:
        if self.precompute_ref_hidden and self.method not in ("tdpo1", "tdpo2"):
            raise ConfigError(
                f"precompute_ref_hidden keeps what the KL of tdpo1 and tdpo2 needs; method "
                f"'{self.method}' has none. Use precompute_ref_log_probs, which is far smaller."
            )

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference is computed before training, and not in each step."""
        return self.precompute_ref_log_probs or self.precompute_ref_hidden

    @property
    def resolved_beta(self) -> float:
        """beta, or the method's own value where none was given."""
        if self.beta is not None:
            return self.beta
        by_position = self.method == "cdpo" and self.reduction == "position"
        return CDPO_POSITION_BETA if by_position else DEFAULT_BETA[self.method]

    @property
    def resolved_level(self) -> str:
        """level, or the method's own; "auto" asks rows with a prefix to say where they end."""
        return self.level or {"step-dpo": "step", "scdpo": "solution"}.get(self.method, "auto")

    def build_objective(self) -> Objective:
        """The objective on per-token quantities that the options describe."""
        beta = self.resolved_beta
        if self.method in ("tdpo1", "tdpo2"):
            alpha = 0.5 if self.alpha is None else self.alpha
            return TDPO(beta=beta, alpha=alpha, variant=self.method)
        if self.method == "simpo":
            return SimPO(beta=beta, margin=1.0 if self.margin is None else self.margin)
        return DPO(
            beta=beta,
            link=self.link,
            label_smoothing=self.label_smoothing,
            length_normalized=self.length_normalized,
            reference_free=self.reference_free,
            margin=self.margin or 0.0,
            nll_weight=self.nll_weight,
            reduction=self.reduction,
            positions_per_pair=self.positions_per_pair,
        )
