"""Evaluation: rows of any kind at any time, each counted once, against the right reference."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from peft import LoraConfig
from transformers import TrainerCallback

from prefkit import PreferenceTrainer
from prefkit.data.sources import files
from prefkit.errors import ConfigError, NoRowsError
from tests.train.trainer_cases import (
    ROWS,
    TREE_ROWS,
    byte_tokenizer,
    config,
    logs_of,
    tiny_model,
    trainer,
)

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
SOME = ROWS[:5]


def evaluator(folder: Path, eval_dataset: Any = None, **options: Any) -> PreferenceTrainer:
    """A trainer without rows to train on."""
    return PreferenceTrainer(
        tiny_model(scale=3.0),
        args=config(folder, **options),
        eval_dataset=eval_dataset,
        processing_class=byte_tokenizer(),
    )


def streamed(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=2)


KINDS: dict[str, Any] = {
    "dataset": datasets.Dataset.from_list,
    "iterable dataset": streamed,
    "generator": iter,
    "torch dataset": lambda rows: TorchRows(rows),
}
DICTS: dict[str, Any] = {
    "dict": lambda sets: sets,
    "dataset dict": datasets.DatasetDict,
    "iterable dataset dict": datasets.IterableDatasetDict,
}


class TorchRows:
    """A map-style set of one's own: a length and items, no more."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_are_evaluated_alike(kind: str, tmp_path: Path) -> None:
    made = evaluator(tmp_path)
    want = made.evaluate(SOME)["eval_logps/chosen"]
    assert made.evaluate(KINDS[kind](SOME))["eval_logps/chosen"] == want
    assert evaluator(tmp_path, KINDS[kind](SOME)).evaluate()["eval_logps/chosen"] == want


@pytest.mark.parametrize("kind", DICTS)
@pytest.mark.parametrize("stream", [False, True])
def test_dicts_of_sets_give_metrics_by_name(kind: str, stream: bool, tmp_path: Path) -> None:
    if (kind == "dataset dict" and stream) or (kind == "iterable dataset dict" and not stream):
        pytest.skip("no such object")
    kept = streamed if stream else datasets.Dataset.from_list
    sets = DICTS[kind]({"a": kept(SOME), "b": kept(ROWS[5:9])})
    given = evaluator(tmp_path, sets).evaluate()
    later = evaluator(tmp_path).evaluate(sets)
    for name, rows in {"a": SOME, "b": ROWS[5:9]}.items():
        want = evaluator(tmp_path).evaluate(rows)["eval_logps/chosen"]
        assert given[f"eval_{name}_logps/chosen"] == want
        assert later[f"eval_{name}_logps/chosen"] == want
    assert evaluator(tmp_path).evaluate(sets, metric_key_prefix="x")["x_b_loss"] > 0


@pytest.mark.parametrize("options", [{}, {"tokens_per_batch": 64}])
def test_each_set_of_a_dict_goes_through_evaluate(options: dict[str, Any], tmp_path: Path) -> None:
    """A trainer of one's own may add to the metrics of each, as with `transformers.Trainer`."""

    class Counting(PreferenceTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            names.append(args[2] if len(args) > 2 else kwargs.get("metric_key_prefix", "eval"))
            return super().evaluate(*args, **kwargs)

    names: list[str] = []
    made = Counting(
        tiny_model(), args=config(tmp_path, **options), processing_class=byte_tokenizer()
    )
    found = made.evaluate({"a": SOME, "b": ROWS[5:9]})
    assert names == ["eval", "eval_a", "eval_b"]
    assert found["eval_b_loss"] == made.evaluate(ROWS[5:9])["eval_loss"]


def test_a_trainer_without_rows_to_train_on_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no train_dataset: this trainer can only evaluate"):
        evaluator(tmp_path, SOME).train()


def test_streams_are_read_to_their_end_once(tmp_path: Path, monkeypatch: Any) -> None:
    """While training evaluates, again and again, on the same rows."""
    read = []

    def rows() -> Iterator[dict[str, Any]]:
        read.append(1)
        yield from SOME

    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1}
    trained = trainer(tmp_path, eval_dataset=Again(rows), **options)
    trained.train()
    assert len(logs_of(trained, "eval_loss")) == 4
    assert len(read) == 1
    monkeypatch.setattr(files, "MOST", 7)
    with pytest.raises(ConfigError, match=r"stream of more than 7 rows.*Give some of them"):
        trained.evaluate(itertools.cycle(SOME))
    with pytest.raises(ConfigError, match=r"datasets.Dataset.from_list\(list\(stream.take"):
        trained.evaluate(streamed(ROWS[:8]))
    with pytest.raises(NoRowsError, match="a stream without any row"):
        trained.evaluate(iter([]))


class Again:
    """An iterable without a length that calls a function for its rows."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())


def test_a_stream_prepared_to_train_on_has_no_end_to_evaluate_on(tmp_path: Path) -> None:
    made = trainer(tmp_path, rows=streamed(ROWS))
    with pytest.raises(ConfigError, match=r"Give the datasets\.IterableDataset itself"):
        made.evaluate(made.train_dataset)


# -- the reference of rows that come later ---------------------------------------------------------

CACHED: dict[str, dict[str, Any]] = {
    "log-probs": {"precompute_ref_log_probs": True},
    "hidden states": {"precompute_ref_hidden": True, "method": "tdpo2"},
    "packed trees": {"precompute_ref_log_probs": True, "tokens_per_batch": 90},
}


@pytest.mark.parametrize("case", CACHED)
def test_new_rows_get_a_cache_before_the_first_step(case: str, tmp_path: Path) -> None:
    """Then they can be evaluated on at any time; rows that were never seen cannot any more."""
    options: dict[str, Any] = {"max_steps": 2, **CACHED[case]}
    live = {k: v for k, v in options.items() if not k.startswith("precompute")}
    made = trainer(tmp_path / "cached", tiny_model(scale=3.0), TREE_ROWS, **options)
    want = trainer(tmp_path / "live", tiny_model(scale=3.0), TREE_ROWS, **live)
    assert made.reference is None
    for rows in (SOME, {"a": SOME, "b": TREE_ROWS[:6]}):
        close(made.evaluate(rows), want.evaluate(rows))
    made.train()
    want.train()
    for rows in (SOME, {"a": SOME, "b": TREE_ROWS[:6]}):
        close(made.evaluate(rows), want.evaluate(rows))
    assert abs(made.evaluate(SOME)["eval_rewards/margins"]) > 1e-3
    with pytest.raises(ConfigError, match=r"reference is gone.*as eval_dataset from the start"):
        made.evaluate(ROWS[3:])
    folder = tmp_path / "cached" / "ref_cache"
    kept = {path.name for path in folder.iterdir()}
    for shard in folder.glob("rows_*/shard-00000.safetensors"):  # lost: nobody can make it again
        shard.unlink()
    with pytest.raises(ConfigError, match="reference is gone"):
        made.evaluate(SOME)
    assert {path.name for path in folder.iterdir()} == kept


def test_a_second_training_does_not_begin_at_the_reference(tmp_path: Path) -> None:
    class Evaluating(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            said.append(made.state.global_step)
            try:
                made.evaluate(SOME)
            except ConfigError as error:
                said.append(str(error))

    said: list[Any] = []
    made = trainer(tmp_path, tiny_model(scale=3.0), precompute_ref_log_probs=True, max_steps=1)
    made.train()
    made.add_callback(Evaluating())
    made.train()
    assert said[0] == 0
    assert "reference is gone" in said[1]


def close(got: dict[str, float], want: dict[str, float]) -> None:
    names = [name for name in want if "loss" in name or "logps" in name or "margins" in name]
    assert len(names) in (4, 8)
    for name in names:
        assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-5), name


def test_an_adapter_switched_off_is_the_reference_at_any_time(tmp_path: Path) -> None:
    options: dict[str, Any] = {"peft_config": LORA, "max_steps": 2}
    made = trainer(tmp_path, tiny_model(scale=3.0), precompute_ref_log_probs=True, **options)
    want = trainer(tmp_path, tiny_model(scale=3.0), **options)
    for one in (made, want):
        one.train()
    close(made.evaluate(SOME), want.evaluate(SOME))


def test_a_reference_of_its_own_is_freed_with_its_cache(tmp_path: Path) -> None:
    made = trainer(tmp_path, ref_model=tiny_model(seed=1), precompute_ref_log_probs=True)
    with pytest.raises(ConfigError, match="reference is gone"):
        made.evaluate(SOME)


def test_rows_that_come_later_are_those_of_the_start_to_a_resumed_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"precompute_ref_log_probs": True, "save_steps": 2}
    options |= {"save_strategy": "steps", "max_steps": 2}
    first = trainer(tmp_path, tiny_model(scale=3.0), **options)
    first.evaluate(SOME)
    first.train()
    want = first.evaluate(SOME)["eval_rewards/margins"]
    again = trainer(tmp_path, tiny_model(scale=3.0), **{**options, "max_steps": 3})
    assert again.evaluate(SOME)["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    again.train("auto")
    assert again.started_at == 2
    # The schedule that is resumed ends with a rate of 0.
    assert again.evaluate(SOME)["eval_rewards/margins"] == pytest.approx(want, rel=1e-5)
    with pytest.raises(ConfigError, match="reference is gone"):
        again.evaluate(ROWS[6:])


# -- options about rows ----------------------------------------------------------------------------


def test_no_row_to_evaluate_on_is_dropped_with_a_last_batch(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataloader_drop_last": True, "per_device_eval_batch_size": 4}
    want = evaluator(tmp_path, SOME, per_device_eval_batch_size=4).evaluate()
    got = evaluator(tmp_path, SOME, **options).evaluate()
    assert got["eval_logps/chosen"] == want["eval_logps/chosen"]


def test_workers_and_token_counts_are_transformers_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2}
    options |= {"dataloader_persistent_workers": True, "remove_unused_columns": True}
    trained = trainer(
        tmp_path, eval_dataset={"a": SOME}, include_num_input_tokens_seen="all", **options
    )
    trained.train()
    plain = trainer(tmp_path, eval_dataset={"a": SOME})
    plain.train()
    assert trained.evaluate()["eval_a_loss"] == plain.evaluate()["eval_a_loss"]
    line = logs_of(trained)[-1]
    assert line["num_input_tokens_seen"] == line["num_tokens_read"]


def test_skipped_rows_are_in_every_line_of_the_log(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "rejected": ""}, {**ROWS[0], "rejected": ROWS[0]["chosen"]}]
    trained = trainer(tmp_path, rows=rows, empty="skip", equal="skip")
    trained.train()
    assert [line["skipped_rows"] for line in logs_of(trained)] == [2] * 4
    clean = trainer(tmp_path, empty="skip")
    clean.train()
    assert "skipped_rows" not in logs_of(clean)[0]


@pytest.mark.parametrize("changes", [{}, {"peft_config": LORA}])
def test_evaluation_before_training_has_its_precision_and_leaves_no_trace(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Policy and reference agree to the last bit, and training is what it is without it."""
    options: dict[str, Any] = {"bf16": True, "max_steps": 2, **changes}
    made = trainer(tmp_path / "a", tiny_model("gemma2", scale=3.0), **options)
    assert abs(made.evaluate(ROWS[:4])["eval_rewards/chosen"]) < 1e-7
    assert not hasattr(made.model, "_is_accelerate_prepared")
    plain = trainer(tmp_path / "b", tiny_model("gemma2", scale=3.0), **options)
    for one in (made, plain):
        one.train()
    assert [x["loss"] for x in logs_of(made)] == [x["loss"] for x in logs_of(plain)]
