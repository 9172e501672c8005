"""Two trainers on the same rows and models: TRL's own, and TRL's with prefkit's head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.trainer_cases import ROWS, byte_tokenizer, run_options, tiny_model

trl = pytest.importorskip("trl", reason="TRL is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")

QUIET: dict[str, Any] = {
    "report_to": "none",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
}
OWN = ("ref_model", "eval_dataset", "peft_config", "data_collator", "compute_metrics", "callbacks")


def ours() -> type:
    """The trainer that is tested."""
    from prefkit.integrations.trl import DPOTrainer

    return DPOTrainer


def our_config() -> type:
    from prefkit.integrations.trl import DPOConfig

    return DPOConfig


def theirs() -> type:
    return trl.DPOTrainer


def moved(family: str = "llama", by: float = 0.05, **changes: Any) -> Any:
    """The policy's model, moved away: a reference of which no log-ratio is 0."""
    model = tiny_model(family, scale=3.0, **changes)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def trainer(kind: type, folder: Path, model: Any = None, rows: Any = None, **changes: Any) -> Any:
    """A trainer on a tiny model, with `moved` as its reference unless another is given.

    Arguments of the trainer itself are told from options by name.
    """
    own = {name: changes.pop(name) for name in OWN if name in changes}
    config = changes.pop("config", trl.DPOConfig)
    options = {**run_options(folder), **QUIET, **changes}
    if not isinstance(rows, datasets.Dataset):
        rows = datasets.Dataset.from_list(list(ROWS if rows is None else rows))
    if not {"ref_model", "peft_config"} & own.keys() and not hasattr(model, "peft_config"):
        own["ref_model"] = moved()
    if isinstance(own.get("eval_dataset"), list):
        own["eval_dataset"] = datasets.Dataset.from_list(own["eval_dataset"])
    return kind(
        tiny_model(scale=3.0) if model is None else model,
        args=config(**options),
        train_dataset=rows,
        processing_class=byte_tokenizer(),
        **own,
    )


def one_step(made: Any, batch: Any = None) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients and metrics of a trainer's first batch, or of a given one."""
    batch = next(iter(made.get_train_dataloader())) if batch is None else batch
    made.model.train()
    loss = made.compute_loss(made.model, dict(batch))
    loss.backward()
    grads = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads, {k: v[0] for k, v in made._metrics["train"].items()}


def check_step(
    got: tuple[float, dict[str, Tensor], dict[str, float]],
    want: tuple[float, dict[str, Tensor], dict[str, float]],
    rel: float = 1e-5,
    grads: float = 1e-4,
) -> None:
    """Loss and metrics to `rel`; each gradient to `grads` of the largest."""
    assert got[0] == pytest.approx(want[0], rel=rel, abs=1e-7)
    assert got[1].keys() == want[1].keys()
    scale = max(float(x.abs().max()) for x in want[1].values())
    assert scale > 0
    for name, grad in want[1].items():
        assert float((got[1][name] - grad).abs().max()) <= grads * scale, name
    assert got[2].keys() == want[2].keys()
    for name, value in want[2].items():
        assert got[2][name] == pytest.approx(value, rel=10 * rel, abs=1e-5), name


def check_logs(got: Any, want: Any, first: float = 1e-5, later: float = 3e-4) -> None:
    """Every number of every log line of two runs."""
    mine, other = (
        [line for line in run.state.log_history if "rewards/chosen" in line] for run in (got, want)
    )
    assert len(mine) == len(other) > 0
    for step, (ours_, theirs_) in enumerate(zip(mine, other, strict=True)):
        assert ours_.keys() == theirs_.keys()
        rel = later if step else first  # Adam amplifies rounding
        for name, value in theirs_.items():
            assert ours_[name] == pytest.approx(value, rel=rel, abs=3 * rel), (step, name)
