"""Every check of a run, and the order they are made in: `check_run`.

`prefkit train`, the trainers and `prefkit plan` call it. Two kinds of checks are not here, because
they cannot be made at this time:

- before: what the options alone tell (values, combinations), which a config checks when it is made;
- after: what rows and weights tell. In order: the policy, whether it is causal, its adapter and
  dtypes (`prefkit.train.models.policy`), the reference beside it
  (`prefkit.train.models.reference`), the rows (`prefkit.data`), the layout
  (`prefkit.train.rows.layout`), the checkpoint that is resumed (`prefkit.train.checkpointing`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.train.checks.arguments import refuse_missing_eval
from prefkit.train.checks.best_metric import (
    check_best_metric,
    expected_metrics,
    objective_metrics,
    solution_metrics,
)
from prefkit.train.checks.machine import check_machine
from prefkit.train.checks.options import check_passes
from prefkit.train.checks.shared_rows import check_groups, check_shared_model
from prefkit.train.checks.start import Start, check_processes
from prefkit.train.checks.streams import refuse_stream


@dataclass(frozen=True)
class Given:
    """What a trainer was given beside its options.

    Args:
        train_dataset, eval_dataset: rows as they came.
        callbacks: of the trainer.
        adds_metrics: its evaluations report more than those of prefkit.
    """

    train_dataset: Any = None
    eval_dataset: Any = None
    callbacks: Sequence[Any] | None = None
    adds_metrics: bool = False


def check_run(
    config: Any,
    start: Start | None = None,
    *,
    given: Given | None = None,
    model_config: Any = None,
    trainable_head: bool | None = None,
) -> None:
    """Checks what can be told before rows are read and weights are loaded, cheapest first.

    1. the rows as they were given: an evaluation without rows, a stream where none will do;
    2. the best model's metric: one that evaluations make;
    3. the start: processes to shard over, and to divide into groups;
    4. the head: passes that can compute the loss;
    5. the model's config: heads that processes can share;
    6. the machine, last because it may ask the network: packages, backend, folders, the Hub.

    Args:
        config: a `PreferenceConfig` or `SupervisedConfig`.
        start: a supposed one, of a plan; None = that of this process.
        given: of a trainer; None where the rows are not known yet.
        model_config: of the policy, or None: then the trainer checks it.
        trainable_head: whether the head's weight trains, or None: then the trainer checks what
            that decides.

    Raises:
        ConfigError, ModelError: the first of these that is wrong, with its remedy.
    """
    start = Start.here(config) if start is None else start
    objective = config.build_objective() if hasattr(config, "build_objective") else None
    if given is not None:
        refuse_missing_eval(config, given.eval_dataset)
        refuse_stream(config, given.train_dataset)
    given = given or Given()
    if not given.adds_metrics:
        logged = config.log_entropy
        own = objective_metrics(objective, logged) if objective else solution_metrics(logged)
        names = expected_metrics(own, config)
        check_best_metric(config, names, given.eval_dataset, given.callbacks)
    check_processes(config, start)
    check_groups(config, start)
    if objective is not None:  # a frozen head has the fewest obstacles: what it has, all have
        check_passes(config, objective, bool(trainable_head))
    if model_config is not None:
        check_shared_model(start.shared_by, model_config)
    if not start.supposed:
        check_machine(config)
