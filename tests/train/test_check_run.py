"""`check_run`: what refuses a run before rows and weights are read, and in which order."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from prefkit import ConfigError, ModelError
from prefkit.train.checks.entry import Given, check_run
from prefkit.train.checks.start import Start
from tests.train.trainer_cases import ROWS, config

NO_METRIC = {"eval_strategy": "steps", "metric_for_best_model": "nothing"}
FORCED: dict[str, Any] = {"head_passes": "one_pass", "per_device_train_batch_size": 2}


def supposed(**facts: Any) -> Start:
    """A start that is only described: one process that shares nothing."""
    facts = {"processes": 1, "shared_by": 1, "fsdp": False, "deepspeed": False, **facts}
    return Start(alone=True, remedy="Give --gpus N", supposed=True, **facts)


def two_heads() -> Any:
    return AutoConfig.for_model("llama", num_attention_heads=2)


def test_the_order(tmp_path: Path) -> None:
    """Everything is wrong at once; each time the first mistake is mended, the next is told."""
    options: dict[str, Any] = {**NO_METRIC, **FORCED, "ref_cache_dir": __file__}
    start: dict[str, Any] = {"processes": 4, "shared_by": 4, "fsdp": True}
    given = Given(train_dataset=ROWS)
    mended: list[tuple[str, Any]] = [
        ("no eval_dataset", lambda: Given(train_dataset=ROWS, eval_dataset=ROWS)),
        ("metric_for_best_model is nothing", lambda: options.pop("metric_for_best_model")),
        ("Give --gpus N, or leave fsdp out", lambda: start.update(fsdp=False, processes=6)),
        ("and this run has 6 process", lambda: start.update(processes=4)),
        ("head_passes is one_pass", lambda: options.pop("head_passes")),
        ("2 attention heads cannot be shared out over 4", lambda: start.update(shared_by=2)),
    ]
    for words, mend in mended:
        with pytest.raises((ConfigError, ModelError)) as caught:
            check_run(
                config(tmp_path, **options),
                supposed(**start),
                given=given,
                model_config=two_heads(),
                trainable_head=True,
            )
        assert words in str(caught.value)
        found = mend()
        given = found if isinstance(found, Given) else given
    described = config(tmp_path, **options)
    rest: dict[str, Any] = {"model_config": two_heads(), "trainable_head": True}
    check_run(described, supposed(**start), given=given, **rest)  # no machine is asked
    with pytest.raises(ConfigError, match=r"ref_cache_dir: .* is a file\. Name a folder"):
        check_run(described, given=given, **rest)


def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.integrations.integration_utils.is_wandb_available"
    monkeypatch.setattr(name, lambda: False)
    described = config(tmp_path, report_to="wandb")  # a config may be described anywhere
    with pytest.raises(ConfigError, match="report_to asks for wandb, which is not installed"):
        check_run(described)
    monkeypatch.setattr(name, lambda: True)
    check_run(described)


def test_what_only_the_trainer_knows_is_left_to_it(tmp_path: Path) -> None:
    check_run(config(tmp_path, **FORCED))  # whether the head trains
    check_run(config(tmp_path, **NO_METRIC), given=Given(eval_dataset=ROWS, adds_metrics=True))
