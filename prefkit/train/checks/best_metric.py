"""Which metrics an evaluation makes, and runs that wait for one that none makes.

transformers looks for `metric_for_best_model` after the first evaluation, when much of a run may
have been computed. Here the name is looked up before.
"""

import difflib
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from prefkit.errors import ConfigError
from prefkit.loss.objective import Objective
from prefkit.loss.token_metrics import token_metric_names
from prefkit_kernels import TokenStats

# Metrics that may be wanted high or low: what transformers would take for granted is no answer.
_EITHER_WAY = (
    *("rewards/rejected", "logps/rejected", "kl/chosen", "kl/rejected"),
    *("logits/chosen", "logits/rejected", "entropy", "active_weight_fraction"),
)
_NEEDS_EVALUATION = (
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("eval_delay", "eval_accumulation_steps"),
)


def objective_metrics(objective: Objective, log_entropy: bool) -> list[str]:
    """The names under which an evaluation of pairs reports, without `eval_`: those of one pair."""
    nothing = torch.zeros(2)
    stats = TokenStats(*[nothing] * len(TokenStats._fields))
    margins = torch.zeros(1) if objective.needs_margins else None
    groups = torch.zeros(1, dtype=torch.int64) if objective.needs_groups else None
    point = torch.zeros(()) if objective.needs_reference_point else None
    result = objective(
        stats, torch.tensor([0, 1]), margins=margins, groups=groups, reference_point=point
    )
    of_tokens = token_metric_names(log_entropy)
    return ["loss", *result.metrics, *of_tokens, "active_weight_fraction"]


def solution_metrics(log_entropy: bool) -> list[str]:
    """The names under which an evaluation of solutions reports, without `eval_`."""
    return ["loss", "mean_token_accuracy", *(["entropy"] if log_entropy else [])]


def expected_metrics(own: list[str], config: Any) -> list[str]:
    """Names under which an evaluation may report, before the model is there.

    Args:
        own: of the loss.
        config: whether the model has routers whose balance is trained shows when it is loaded;
            until then `aux_loss` counts where it is asked for.
    """
    asked = str(config.metric_for_best_model).endswith("aux_loss")
    return [*own, "aux_loss"] if asked and config.router_aux_loss_coef != 0 else own


def check_evaluation_options(config: Any) -> None:
    """Refuses options that only an evaluation reads, where none is made.

    Args:
        config: `transformers.TrainingArguments` before their own checks.

    Raises:
        ConfigError: names the option; or the best model's metric, or its direction, is not given
            and not obvious.
    """
    _check_stopping(config)
    metric, saving = config.metric_for_best_model, _value(config.save_strategy)
    if metric and config.greater_is_better is None and metric.endswith(_EITHER_WAY):
        raise ConfigError(
            f"metric_for_best_model is {metric}, which may be wanted high or low. Say which with "
            "greater_is_better: true or false."
        )
    if saving == "best" and metric is None and not config.load_best_model_at_end:
        raise ConfigError(
            "save_strategy best saves where a metric is the best so far. Say which one with "
            "metric_for_best_model, such as loss or rewards/margins."
        )
    strategy = _value(config.eval_strategy)
    given = [name for name in _NEEDS_EVALUATION if getattr(config, name)]
    given += ["greater_is_better"] if config.greater_is_better is False else []
    given += ["save_strategy best"] if saving == "best" else []
    if strategy == "no" and given:
        raise ConfigError(
            f"{given[0]} has no effect without evaluation. Set eval_strategy to steps or epoch "
            "(and give rows to evaluate on), or leave it out."
        )
    if config.eval_steps is not None and strategy != "steps":
        raise ConfigError(
            f"eval_steps has no effect with eval_strategy {strategy}. Set eval_strategy to steps, "
            "or leave eval_steps out."
        )


def _check_stopping(config: Any) -> None:
    if config.early_stopping_patience is None:
        if config.early_stopping_threshold:
            raise ConfigError(
                "early_stopping_threshold has no effect without early_stopping_patience. Set it, "
                "or leave early_stopping_threshold out."
            )
        return
    missing = []
    if _value(config.eval_strategy) == "no":
        missing.append("eval_strategy (steps or epoch, and rows to evaluate on)")
    if not config.load_best_model_at_end:
        missing.append("load_best_model_at_end: true")
    if missing:
        raise ConfigError(
            f"early_stopping_patience needs {' and '.join(missing)}; metric_for_best_model says "
            "what is watched, the loss where it is left out."
        )


def check_best_metric(
    args: Any, names: Collection[str], eval_dataset: Any, callbacks: Sequence[Any] | None
) -> None:
    """Refuses a metric for the best model that no evaluation of this run makes.

    Args:
        args: a config that has passed its own checks.
        names: what an evaluation reports, without `eval_`.
        eval_dataset: as given to the trainer; a dict's keys are part of the names.
        callbacks: of the trainer. One with an `on_evaluate` of its own may add any metric.

    Raises:
        ConfigError: lists the metrics, the nearest first; or early stopping has nothing to watch.
    """
    callbacks = callbacks or []
    early = any(_is_a(one, EarlyStoppingCallback) for one in callbacks)
    if early and (_value(args.eval_strategy) == "no" or args.metric_for_best_model is None):
        raise ConfigError(
            "EarlyStoppingCallback watches a metric of evaluations. Set eval_strategy to steps or "
            "epoch, and metric_for_best_model to one of: "
            f"{', '.join(_full_names(names, eval_dataset))}."
        )
    metric = args.metric_for_best_model
    if metric is None or _value(args.eval_strategy) == "no":
        return
    known = _full_names(names, eval_dataset)
    wanted = metric if metric.startswith("eval_") else f"eval_{metric}"
    if wanted in known or any(map(_adds_metrics, callbacks)):
        return
    near = difflib.get_close_matches(wanted, known, n=len(known), cutoff=0.0)
    several = isinstance(eval_dataset, dict)
    why = " Each evaluation set has metrics of its own." if several else ""
    default = " (the default)" if metric == "loss" else ""
    raise ConfigError(
        f"metric_for_best_model is {metric}{default}, and no evaluation of this run makes {wanted}."
        f"{why} Choose one of: {', '.join(near)}."
    )


def _full_names(names: Collection[str], eval_dataset: Any) -> list[str]:
    if isinstance(eval_dataset, dict):
        return [f"eval_{key}_{name}" for key in eval_dataset for name in names]
    return [f"eval_{name}" for name in names]


def _adds_metrics(callback: Any) -> bool:
    """Whether a callback is the user's own and sees evaluations: it may add to their metrics."""
    kind = callback if isinstance(callback, type) else type(callback)
    if kind.__module__.startswith(("transformers.", "prefkit.")):
        return False
    own = getattr(kind, "on_evaluate", None)
    return own not in (TrainerCallback.on_evaluate, EarlyStoppingCallback.on_evaluate)


def _is_a(callback: Any, kind: type) -> bool:
    return issubclass(callback if isinstance(callback, type) else type(callback), kind)


def _value(strategy: Any) -> str:
    """A strategy's name, of the enumeration or of what it is made from (YAML reads no as false)."""
    name = str(getattr(strategy, "value", strategy)).lower()
    return "no" if name in ("false", "none") else name
