"""`SupervisedTrainer`: fine-tuning on given solutions, with the head fused as for pairs.

Rows are `prompt`, optional `prefix`, `response`; the loss is the mean negative log-likelihood of
the responses' tokens, end of sequence included, over the whole accumulation window:

    L = −(1 / T) Σ_t log p(y_t | x, y_<t)        T: the response tokens of all batches of the window

in nats a token. What it shares with `PreferenceTrainer`: rendering and tokenisation, rows without
padding, log-probabilities straight from hidden states (never a tokens × vocabulary matrix), and
checkpoints that are complete or refused, from which a killed run goes on to the same weights.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from prefkit.convert.trainers.trl import ARGUMENTS as TRL_ARGUMENTS
from prefkit.errors import ConfigError
from prefkit.model.head.fused import install
from prefkit.options.check import check_options
from prefkit.train.base import PrefkitTrainer
from prefkit.train.checks.arguments import refuse_kinds
from prefkit.train.checks.entry import Given, check_run
from prefkit.train.checks.loading import check_quantisation
from prefkit.train.checks.names import named_arguments, named_options
from prefkit.train.fields import SupervisedFields
from prefkit.train.models.loading import keywords_of
from prefkit.train.models.policy import prepare_policy
from prefkit.train.models.run_models import RunModels
from prefkit.train.rows.solutions import SolutionRows
from prefkit.train.run_config import RunConfig
from prefkit.train.step.balancing import router_of_run
from prefkit.train.step.solution_loss import SolutionLoss


@named_options
@dataclass(kw_only=True, repr=False)
class SupervisedConfig(SupervisedFields, RunConfig):
    """Options of supervised fine-tuning: `prefkit.train.fields.SupervisedFields` and
    `transformers.TrainingArguments`. Keyword-only but for output_dir, the first.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    __repr__ = RunConfig.__str__  # which hides secrets; those of the fields do not

    def __post_init__(self) -> None:
        check_options(self, [SupervisedFields])
        if self.output_dir is None:
            self.output_dir = "prefkit-output/sft"
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor is read by Trainer's own loss, not by this one. Leave it "
                "out."
            )


@named_arguments(SupervisedConfig, TRL_ARGUMENTS)
class SupervisedTrainer(PrefkitTrainer):
    """Fine-tunes a causal language model on solutions.

    Args:
        model: a causal LM, a PEFT model, or the name or folder of a model; or the folder of an
            adapter, which goes on training.
        args: a `SupervisedConfig`.
        train_dataset, eval_dataset: rows with `prompt`, `response` and optionally `prefix` and
            `append_eos` (a path, a `datasets.Dataset`, a list of dicts), or a `SolutionDataset`;
            `eval_dataset` may be a dict of them.
        processing_class: the tokenizer; None = the model's own.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: how the frozen weights of a model given by name are quantised.
        peft_config: wraps the model in this adapter.

    Raises:
        ModelError, RowError, ConfigError: see the modules the work is handed to.
    """

    def __init__(
        self,
        model: str | nn.Module,
        args: SupervisedConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        args = args if args is not None else SupervisedConfig()
        if not isinstance(args, SupervisedConfig):
            raise ConfigError(f"args is a {type(args).__name__}; it must be a SupervisedConfig.")
        refuse_kinds(model, processing_class, peft_config)
        quantised = check_quantisation(model, args, quantization_config, peft_config)
        given = Given(train_dataset, eval_dataset, callbacks, self.adds_metrics())
        check_run(args, given=given)
        loading = keywords_of(args, quantised)
        policy, tokenizer = prepare_policy(model, processing_class, peft_config, args, loading)
        router = router_of_run(policy, args)
        models = RunModels(policy, install(policy), router)
        rows = SolutionRows(args, tokenizer, models.head.owner)
        data = rows.prepare(train_dataset, eval_dataset)
        rows.lay_out([policy], *data)
        loss = SolutionLoss(args, models)
        super().__init__(args, models, rows, loss, data, callbacks, optimizers)
