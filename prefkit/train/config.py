"""`PreferenceConfig`: one flat set of options, checked before any compute is spent.

An option that the chosen method would ignore is an error, not a silent no-op.
"""

from dataclasses import dataclass

from prefkit.errors import ConfigError
from prefkit.loss.objective import Objective
from prefkit.loss.objectives import METHODS, LossOptions, check_method_reads
from prefkit.options.check import changed, check_options
from prefkit.options.import_path import path_of
from prefkit.train.checks.names import named_options
from prefkit.train.checks.shared_rows import check_sequence_parallel
from prefkit.train.checks.synced import check_synced
from prefkit.train.fields import PreferenceFields
from prefkit.train.run_config import BATCH_SIZES, RunConfig


@named_options
@dataclass(kw_only=True, repr=False)
class PreferenceConfig(PreferenceFields, RunConfig):
    """Options of a preference training run; every field is also a key of the YAML and a flag.

    Keyword-only but for output_dir, the first. prefkit's own fields are documented in
    `prefkit.train.fields.PreferenceFields` and `prefkit.loss.objectives`, all others in
    `transformers.TrainingArguments`.

    Raises:
        ConfigError: a name that is no option, a value out of range, or options that do not go
            together.
    """

    __repr__ = RunConfig.__str__  # which hides secrets; those of the fields do not

    def __post_init__(self) -> None:
        check_options(self, [PreferenceFields])
        for name in ("token_weights", "pair_weights"):
            if callable(function := getattr(self, name)):  # a run is described by names
                setattr(self, name, path_of(name, function))
        check_method_reads(self.method, changed(self, LossOptions))
        objective = self.build_objective()
        self._check_rows()
        self._check_precomputed(objective)
        check_synced(self, objective)
        check_sequence_parallel(self)
        if self.output_dir is None:
            self.output_dir = f"prefkit-output/{self.method}"
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor smooths next-token labels, which a preference loss does not"
                " have. Use label_smoothing instead."
            )

    def _check_rows(self) -> None:
        """One packed row a device and forward pass, where rows are packed."""
        if self.group_by == "none" and self.tokens_per_batch is None:
            raise ConfigError(
                "group_by has no effect without tokens_per_batch: pairs are drawn one by one then. "
                "Set tokens_per_batch, or leave group_by out."
            )
        if self.group_by == "none" and self.layout in ("shared", "separate"):
            raise ConfigError(
                f"group_by has no effect in layout {self.layout}: only trees put the pairs of a "
                "question together. Leave one of them out."
            )
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

    def _check_precomputed(self, objective: Objective) -> None:
        """What is computed of the reference beforehand is what the loss reads."""
        if self.precompute_ref_log_probs and objective.needs_kl:
            raise ConfigError(
                f"precompute_ref_log_probs cannot serve method '{self.method}': its KL needs the "
                "reference's whole distribution at every token, not one log-probability. Remove "
                "precompute_ref_log_probs, or use precompute_ref_hidden (with adapter: lora the "
                "reference costs no memory)."
            )
        if self.precompute_ref_log_probs and not objective.needs_reference:
            raise ConfigError(
                "precompute_ref_log_probs is set, but the loss reads no reference. Remove it."
            )
        if self.precompute_ref_log_probs and objective.needs_reference_point:
            raise ConfigError(
                "precompute_ref_log_probs keeps the reference's log-probabilities of the rows, and "
                "kto also reads those of mismatched responses for its reference point. Remove it, "
                "or set reference_point: false."
            )
        if self.precompute_ref_hidden and not objective.needs_kl:
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
        return self.build_objective().beta

    @property
    def resolved_level(self) -> str:
        """level, or the method's own; "auto" asks rows with a prefix to say where they end."""
        return self.level or METHODS[self.method].level

    def build_objective(self) -> Objective:
        """The objective on per-token quantities that the options describe."""
        return METHODS[self.method].build(vars(self))
