"""Several losses and functions that make weights, in a run of the trainer and its evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import ConfigError
from tests.train.trainer_cases import ROWS, logs_of, tiny_model, trainer


def uncertain(entropy: Tensor, logp: Tensor, ref_logp: Tensor) -> Tensor:
    assert not any(x.requires_grad for x in (entropy, logp, ref_logp))
    return entropy + (ref_logp < 0)


def short(logp: Tensor) -> Tensor:
    return logp[:1]


RUNS: dict[str, dict[str, Any]] = {
    "several losses": {
        "loss_type": ["sigmoid", "bco_pair", "sft"],
        "loss_weights": [0.8, 0.2, 1.0],
    },
    "sorted": {"loss_type": "aot", "label_smoothing": 0.1},
    "divergence": {
        "loss_type": "exo_pair",
        "label_smoothing": 0.01,
        "f_divergence_type": "js_divergence",
    },
    "lengths and likelihoods": {"ld_alpha": 0.5, "use_weighting": True},
    "shipped": {"method": "simpo", "token_weights": "confpo"},
    "a KL": {"method": "tdpo2", "token_weights": "tis_dpo", "pair_weights": "wpo"},
    "of this module": {"token_weights": f"{__name__}:uncertain"},
    "a function": {"loss_type": ["ipo", "hinge"], "token_weights": uncertain},
    "cached reference": {"loss_type": "nca_pair", "precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_and_evaluates(name: str, layout: str, tmp_path: Path) -> None:
    model, options = tiny_model(scale=3.0), RUNS[name]
    made = trainer(tmp_path, model, eval_dataset=ROWS[:6], layout=layout, **options)
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    lines = logs_of(made)
    assert len(lines) == 4
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines)
    assert after["eval_loss"] < before["eval_loss"]


def test_layouts_agree(tmp_path: Path) -> None:
    """One loss whatever the rows: batches of trees, and each side in full."""
    options: dict[str, Any] = {
        "loss_type": ["bco_pair", "sigmoid_norm"], "ld_alpha": 0.5, "use_weighting": True,
    }  # fmt: skip
    losses = []
    for layout in ("tree", "shared", "separate"):
        made = trainer(tmp_path / layout, tiny_model(scale=3.0), layout=layout, **options)
        made.train()
        losses.append([line["loss"] for line in logs_of(made)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


def test_what_a_function_returns_is_told_before_training(tmp_path: Path) -> None:
    """The metrics' names are looked up first, by an evaluation of nothing."""
    with pytest.raises(ConfigError, match=r"token_weights .*returned the shape"):
        trainer(tmp_path, token_weights=f"{__name__}:short")
