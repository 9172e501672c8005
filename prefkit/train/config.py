"""`PreferenceConfig`: one flat set of options, checked before any compute is spent.

An option that the chosen method would ignore is an error, not a silent no-op.
"""

from dataclasses import dataclass

from prefkit.errors import ConfigError
from prefkit.loss.objectives import DPO, TDPO, Objective, SimPO
from prefkit.loss.passes import PASSES
from prefkit.train.fields import CDPO_POSITION_BETA, DEFAULT_BETA, METHODS, PreferenceFields
from prefkit.train.run_config import BATCH_SIZES, CHOICES, NUMBERS, POSITIVE, RunConfig
from prefkit.train.sharding.sequence_parallel import check_sequence_parallel

_CHOICES = {
    **CHOICES,
    "method": METHODS,
    "link": ("sigmoid", "robust", "hinge", "ipo"),
    "reduction": ("sequence", "position"),
    "level": (None, "step", "solution"),
    "layout": ("auto", "shared", "separate"),
    "head_passes": PASSES,
}
_DPO_ONLY = ("link", "label_smoothing", "length_normalized", "reference_free", "nll_weight")
_DPO_FAMILY = ("dpo", "step-dpo", "scdpo", "cdpo")
_NUMBERS: dict[str, type] = {
    **NUMBERS,
    **dict.fromkeys(("beta", "alpha", "label_smoothing", "margin", "nll_weight"), float),
    **dict.fromkeys(("positions_per_pair", "precompute_ref_batch_size"), int),
    **dict.fromkeys(("tokens_per_batch", "sequence_parallel_size"), int),
}
_POSITIVE = (
    *POSITIVE,
    *("sequence_parallel_size", "tokens_per_batch", "precompute_ref_batch_size"),
)


@dataclass(kw_only=True)
class PreferenceConfig(PreferenceFields, RunConfig):
    """Options of a preference training run; every field is also a key of the YAML and a flag.

    Keyword-only. prefkit's own fields are documented in `prefkit.train.fields.PreferenceFields`,
    all others in `transformers.TrainingArguments`.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    def __post_init__(self) -> None:
        self._check_choices(_CHOICES)
        self._check_numbers(_NUMBERS, _POSITIVE)
        self._check_ranges()
        self._check_method()
        self._check_rows()
        self._check_hidden()
        check_sequence_parallel(self)
        if self.output_dir is None:
            self.output_dir = f"prefkit-output/{self.method}"
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor smooths next-token labels, which a preference loss does not"
                " have. Use label_smoothing instead."
            )
        try:
            self.build_objective()
        except ValueError as error:
            raise ConfigError(f"{error}") from error

    def _check_rows(self) -> None:
        """One packed row a device and forward pass, where rows are packed."""
        if self.tokens_per_batch is None:
            return
        defaults = PreferenceFields()
        for name in BATCH_SIZES:
            if getattr(self, name) not in (1, getattr(defaults, name)):
                raise ConfigError(
                    f"{name} and tokens_per_batch both say how large a batch is. Leave "
                    f"{name} out: as many pairs as fit are packed into tokens_per_batch tokens."
                )
            setattr(self, name, 1)

    def _check_ranges(self) -> None:
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
