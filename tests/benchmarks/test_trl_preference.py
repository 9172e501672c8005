"""`PreferenceTrainer` behind TRL's signature: TRL's own tests, and how options are written."""

from pathlib import Path
from typing import Any

import pytest

from prefkit.errors import ConfigError

trl = pytest.importorskip("trl", reason="TRL is not installed")

from benchmarks.trl_suite import running, source  # noqa: E402
from benchmarks.trl_suite.preference import UNLIKE, config_of  # noqa: E402

SHIM = "benchmarks.trl_suite.preference:DPOTrainer"
MISSING = f"needs TRL's repository, named by {source.VARIABLE}"


@pytest.mark.slow
@pytest.mark.skipif(source.given() is None, reason=MISSING)
def test_trls_tests_on_text_pass_but_for_those_that_are_named() -> None:
    found = running.run(SHIM, str(source.given()), "TestDPOTrainer and not VLM and not Slow")
    names = {name.partition("::")[2]: one for name, one in found.items()}
    assert sum(one.outcome == "passed" for one in names.values()) > 60
    failed = {name: one.said for name, one in names.items() if one.outcome == "failed"}
    assert failed.keys() == UNLIKE.keys(), failed


def theirs(folder: Path, **options: Any) -> Any:
    return trl.DPOConfig(str(folder), use_cpu=True, **options)


def test_defaults_are_trls(tmp_path: Path) -> None:
    want = theirs(tmp_path)
    made = config_of(want)
    for name in ("per_device_train_batch_size", "gradient_checkpointing", "max_length", "bf16"):
        assert getattr(made, name) == getattr(want, name), name
    assert made.build_objective().beta == want.beta
    for name in ("learning_rate", "num_train_epochs", "logging_steps", "optim", "seed"):
        assert getattr(made, name) == getattr(want, name), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"truncation_mode": "keep_end"}, "keep_end"),
        ({"activation_offloading": True}, "activation_offloading"),
        ({"pad_token": "<pad>"}, "pad_token"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics"),
    ],
)
def test_what_has_no_place_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(theirs(tmp_path, **options))


def test_options_keep_their_names(tmp_path: Path) -> None:
    given: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    given |= {"ld_alpha": 0.5, "beta": 0.3, "max_length": None, "padding_free": True}
    made = config_of(theirs(tmp_path, **given, dataset_num_proc=4))
    assert made.build_objective().loss_type == ("sigmoid", "sft")
    assert (made.ld_alpha, made.beta, made.max_length) == (0.5, 0.3, None)
    assert made.too_long == "error"
