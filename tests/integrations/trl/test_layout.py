"""Which batches are one row, which stay TRL's, and that the numbers are TRL's either way."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.errors import ConfigError, ModelError
from prefkit.integrations.trl.batch import ROW, Scored
from tests.integrations.trl.cases import (
    check_logs,
    datasets,
    moved,
    one_step,
    our_config,
    ours,
    theirs,
    trainer,
)
from tests.train.trainer_cases import ROWS, tiny_model


def stream(rows: Any = ROWS[:10]) -> Any:
    return datasets.Dataset.from_list(list(rows)).to_iterable_dataset()


def check_metrics(got: dict[str, float], want: dict[str, float]) -> None:
    names = [name for name in want if not name.endswith(("runtime", "per_second"))]
    assert len(names) > 10
    for name in names:
        assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_stream_is_evaluated_as_trl_does(from_the_start: bool, tmp_path: Path) -> None:
    """accelerate shares its batches out by the first dimension of every tensor."""
    own = {"eval_dataset": stream()} if from_the_start else {}
    found = []
    for kind in (ours(), theirs()):
        made = trainer(kind, tmp_path, per_device_eval_batch_size=4, **own)
        found.append(made.evaluate() if from_the_start else made.evaluate(stream()))
    check_metrics(*found)


def test_a_run_that_evaluates_a_stream(tmp_path: Path) -> None:
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    runs = []
    for kind in (ours(), theirs()):
        own = {"ref_model": moved(), "eval_dataset": stream()}
        runs.append(trainer(kind, tmp_path, per_device_eval_batch_size=4, **own, **options))
        runs[-1].train()
    assert ROW in next(iter(runs[0].get_eval_dataloader()))
    check_logs(*runs)


def test_a_stream_that_shared_rows_cannot_be_cut_from(tmp_path: Path) -> None:
    """What `evaluate` does in several processes; `test_distributed` has it without the option."""
    made = trainer(ours(), tmp_path, config=our_config(), prefkit_layout="shared")
    with pytest.raises(ConfigError, match=r"cannot be had: a stream\. .* dispatch_batches of"):
        made._prefkit.pad("a stream")
    assert made._prefkit.layout == "shared"


def test_batches_that_are_dispatched_stay_trls(tmp_path: Path) -> None:
    options = {"accelerator_config": {"dispatch_batches": True}, "per_device_eval_batch_size": 4}
    found = [
        trainer(kind, tmp_path, eval_dataset=ROWS[:10], **options).evaluate()
        for kind in (ours(), theirs())
    ]
    check_metrics(*found)


def test_a_row_that_was_cut_is_refused(tmp_path: Path) -> None:
    batch = dict(next(iter(trainer(ours(), tmp_path).get_train_dataloader())))
    assert len(Scored.of(batch)) == batch[ROW]["num_scored"]
    most = len(batch["input_ids"])
    batch[ROW] = {
        name: value[:most] if isinstance(value, torch.Tensor) else value
        for name, value in batch[ROW].items()
    }
    with pytest.raises(ModelError, match=f"has {most} left of its .* Set prefkit_layout: padded"):
        Scored.of(batch)


def test_neftune_is_trls(tmp_path: Path) -> None:
    """Its noise is scaled by the length of a row, which must not grow with the pairs in it."""
    options = {"neftune_noise_alpha": 5.0, "max_steps": 3}
    runs = [trainer(kind, tmp_path, ref_model=moved(), **options) for kind in (ours(), theirs())]
    for run in runs:
        torch.manual_seed(5)
        run.train()
    check_logs(*runs)
    plain = trainer(ours(), tmp_path, ref_model=moved(), max_steps=3)
    plain.train()
    first = [run.state.log_history[0]["loss"] for run in (runs[0], plain)]
    assert first[0] != pytest.approx(first[1], rel=1e-3)


def test_a_compiled_model_is_not_compiled_in_each_step(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    made = trainer(ours(), tmp_path, ref_model=moved(), max_steps=6, **options)
    made.train()
    assert 0 < counters["stats"]["unique_graphs"] <= 3  # one, and one for any length; to spare
    plain = trainer(theirs(), tmp_path, ref_model=moved(), max_steps=6)
    plain.train()
    check_logs(made, plain)


@pytest.mark.parametrize("option", ["neftune_noise_alpha", "torch_compile"])
def test_what_excludes_the_row_without_padding(option: str, tmp_path: Path) -> None:
    options = {"config": our_config(), "prefkit_layout": "shared", option: 5}
    with pytest.raises(ConfigError, match=f"prefkit_layout: shared cannot be had: {option}"):
        trainer(ours(), tmp_path, **options)


def test_a_model_that_cannot_read_it_is_named_with_trls_option(tmp_path: Path) -> None:
    options = {"config": our_config(), "prefkit_layout": "shared", "disable_dropout": False}
    with pytest.raises(ModelError, match=r"^prefkit_layout: shared .* Leave prefkit_layout at"):
        trainer(ours(), tmp_path, **options)


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("auto", "A pair is read as one row, its common prefix once."),
        ("padded", "Rows are padded as TRL pads them, because prefkit_layout is padded."),
    ],
)
def test_one_line_says_which(
    layout: str, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level that is seen where nobody has set up logging."""
    with caplog.at_level(logging.WARNING, logger="prefkit"):
        made = trainer(ours(), tmp_path, config=our_config(), prefkit_layout=layout, max_steps=2)
        made.train()
    said = [record.message for record in caplog.records if record.name.endswith("trl.layout")]
    assert said == [line]


def test_a_layout_that_is_lost_later_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    made, other = trainer(ours(), tmp_path, max_steps=3), trainer(theirs(), tmp_path, max_steps=3)
    made.data_collator = DataCollatorForPreference(made._tokenizer.pad_token_id)
    with caplog.at_level(logging.WARNING, logger="prefkit"):
        made.train()
    assert caplog.text.count("because a batch came without prefkit_row") == 1
    other.train()
    check_logs(made, other)


def test_the_longest_row_is_found_without_max_length(tmp_path: Path) -> None:
    from prefkit.integrations.trl.layout import _longest

    long = [{"prompt": "x" * 40, "chosen": "yes", "rejected": "no, not at all"}]
    made = trainer(ours(), tmp_path, max_length=None, eval_dataset=long)
    assert _longest(made) == 40 + len("no, not at all") + 1
    assert _longest(trainer(ours(), tmp_path, max_length=None, eval_dataset={})) < 50


def test_model_with_rows_of_its_own(tmp_path: Path) -> None:
    """The constructor has said nothing wrong: what it says is in the batches."""
    made = trainer(ours(), tmp_path, tiny_model("gpt2", scale=3.0), ref_model=moved("gpt2"))
    assert (made._prefkit.layout != "padded") == (ROW in next(iter(made.get_train_dataloader())))
    assert one_step(made)[0] > 0
