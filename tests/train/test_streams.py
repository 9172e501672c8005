"""Training on a stream: a window of rows, the same run as on a list, exact when it is resumed."""

import itertools
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from prefkit.data import TokenizeOptions, prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.report import Incident
from prefkit.data.streamed.prepare import stream_pairs
from prefkit.data.streamed.rows import THREAD, WINDOW, StreamedRows
from prefkit.errors import ConfigError, PrefkitError, RowError
from tests.torchrun import ROOT, launched_once
from tests.train import test_supervised
from tests.train.trainer_cases import ROWS, byte_tokenizer, logs_of, tiny_model, trainer, weights_of

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
BAD = {"prompt": "bad", "chosen": " same", "rejected": " same"}


def endless(read: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """The rows over and over, their prompts numbered; notes how many were asked for."""
    for number in itertools.count():
        if read is not None:
            read[0] = number + 1
        row = ROWS[number % len(ROWS)]
        yield {**row, "prompt": f"{number % 500}:{row['prompt']}"}


def stream(
    rows: Callable[..., Any] | list[Any] = endless, **given: Any
) -> datasets.IterableDataset:
    if isinstance(rows, list):
        return datasets.IterableDataset.from_generator(lambda: iter(rows))
    return datasets.IterableDataset.from_generator(rows, gen_kwargs=given or None)


def same_weights(a: Any, b: Any) -> bool:
    first, second = weights_of(a.model), weights_of(b.model)
    return all(torch.equal(first[name], second[name]) for name in first)


class Counted:
    """Rows that may be pickled by name only: what was read of them is kept beside."""

    read = 0


def counted() -> Iterator[dict[str, Any]]:
    for number, row in enumerate(endless()):
        Counted.read = number + 1
        yield row


def test_an_endless_stream_starts_at_once_and_holds_a_window(tmp_path: Path) -> None:
    made = trainer(tmp_path, rows=stream(counted), max_steps=3)
    assert isinstance(made.train_dataset, StreamedRows)
    Counted.read = 0
    made.train()
    assert made.state.global_step == 3
    assert Counted.read <= WINDOW
    assert not [one for one in threading.enumerate() if one.name.startswith(THREAD)]


def test_rows_are_read_in_a_thread_while_others_are_used() -> None:
    """The next half of the window is read without being asked for, and no more than that."""
    half, read = WINDOW // 2, threading.Semaphore(0)
    readers = set()

    def noting(window: Any) -> Any:
        readers.add(threading.current_thread().name)
        if window[0][0] == 2 * half:
            raise RowError("stream", 2 * half, "n", "is bad", "Mend it.")
        read.release()
        return [(row, row) for row, _ in window], []

    rows = iter(StreamedRows(stream(), noting, 10))
    assert next(rows) == (0, 0)
    assert read.acquire(timeout=60)  # what the item is of
    assert read.acquire(timeout=60)  # and what comes behind it
    assert [item for _, item in itertools.islice(rows, 2 * half - 1)] == [*range(1, 2 * half)]
    with pytest.raises(RowError, match=f"row {2 * half}"):
        next(rows)
    assert readers
    assert all(name.startswith(THREAD) for name in readers)
    assert not [one for one in threading.enumerate() if one.name.startswith(THREAD)]


def test_a_stream_trains_as_its_rows_in_a_list_do(tmp_path: Path) -> None:
    rows = list(itertools.islice(endless(), 16))
    streamed = trainer(tmp_path, rows=stream())
    streamed.train()
    listed = trainer(tmp_path, rows=rows, train_sampling_strategy="sequential")
    listed.train()
    assert same_weights(streamed, listed)
    assert [x["loss"] for x in logs_of(streamed)] == [x["loss"] for x in logs_of(listed)]


def test_supervised_streams_too(tmp_path: Path) -> None:
    rows = test_supervised.ROWS
    made = [
        test_supervised.trainer(tmp_path, rows=one, max_steps=3, **more)
        for one, more in ((stream(rows), {}), (rows, {"train_sampling_strategy": "sequential"}))
    ]
    for one in made:
        one.train()
    assert same_weights(*made)


def test_bad_rows_stop_or_are_listed_as_they_come(tmp_path: Path, caplog: Any) -> None:
    rows = list(itertools.islice(endless(), 16))
    mixed = [*rows[:6], BAD, {"prompt": "x"}, *rows[6:]]
    with pytest.raises(RowError, match="stream: row 6, field 'rejected'"):
        trainer(tmp_path, rows=stream(mixed)).train()
    with caplog.at_level(logging.WARNING):
        skipping = trainer(tmp_path, rows=stream(mixed), on_bad_row="skip")
        skipping.train()
    listed = (tmp_path / "skipped_rows_train.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [6, 7]
    assert logs_of(skipping)[-1]["skipped_rows"] == 2
    assert "2 rows of the stream skipped" in caplog.text
    assert "such as stream: row 6, rejected" in caplog.text
    without = trainer(tmp_path, rows=rows, train_sampling_strategy="sequential")
    without.train()
    assert same_weights(skipping, without)


@pytest.mark.parametrize(
    ("processes", "process", "said"),
    [(2, 1, "stream: row 3,"), (3, 0, "stream: row 3,"), (2, 0, "shards of process 0: row 1,")],
)
def test_rows_are_numbered_in_the_whole_stream(processes: int, process: int, said: str) -> None:
    """Rows are dealt in turn, but where each process has shards of its own."""
    good = list(itertools.islice(endless(), 3))
    one: Any = stream([*good, BAD])
    if "shards" in said:
        one = datasets.Dataset.from_list([good[0], BAD, *good[1:]]).to_iterable_dataset(2)
    part = (process, processes)
    made = stream_pairs(one, byte_tokenizer(), TokenizeOptions(), ReadOptions(), part=part)
    with pytest.raises(RowError, match=said):
        list(itertools.islice(made, 4))


# -- going on --------------------------------------------------------------------------------------


def awkward() -> list[dict[str, Any]]:
    """Bad rows, and rows of several pairs that end in the middle of a batch."""
    rows: list[dict[str, Any]] = list(itertools.islice(endless(), 9))
    several = {"prompt": "q", "responses": [" a", " bb", " ccc"], "pairs": [[0, 1], [0, 2], [1, 2]]}
    return [rows[0], BAD, several, *rows[1:5], BAD, several, *rows[5:]]


def items_of(window: Any) -> tuple[list[tuple[int, Any]], list[Incident]]:
    """As many items of a row as it says, and an incident where it says none."""
    items = [(row, (data["n"], i)) for row, data in window for i in range(data["n"] % 4)]
    bad = [Incident("stream", row, "n", "is bad") for row, data in window if data["n"] % 4 == 0]
    return items, bad


SEED = 111  # of a shuffle whose first pass ends with rows that are left out


def test_every_place_can_be_gone_back_to(tmp_path: Path) -> None:
    """Two passes and more of 90 rows in a shuffle buffer, from each place in them."""
    numbers = [{"n": n} for n in range(90)]
    shuffled = stream(numbers).shuffle(seed=SEED, buffer_size=7)
    assert [row["n"] % 4 for row in shuffled][-2:] == [0, 0]  # nothing good follows these
    listed = tmp_path / "bad.jsonl"
    whole = StreamedRows(shuffled, items_of, 10, listed)
    places = [whole.state()]
    want = []
    for number, item in itertools.islice(whole, 320):
        assert number == len(want)
        want.append(item)
        whole.use(1)
        places.append(whole.state())
    assert len(set(want[:133])) == 133  # a pass: rows of one, two and three items
    assert whole.state()["passes"] == 2
    lines = listed.read_text()
    assert len(lines.splitlines()) == 23
    for place in range(0, 320, 11):
        again = StreamedRows(shuffled, items_of, 10, listed)
        again.go_to(json.loads(json.dumps(places[place])))
        got = [item for _, item in itertools.islice(again, 320 - place)]
        assert got == want[place:], place
        assert listed.read_text() == lines
    assert any(place["of_row"] for place in places[::11])


@pytest.mark.parametrize(
    ("make", "changes", "checkpoint"),
    [
        (lambda: stream(), {"gradient_accumulation_steps": 2}, 2),
        # 15 pairs: six steps of three batches of two are two passes and a part of the third.
        (
            lambda: stream(awkward()).shuffle(seed=1, buffer_size=5),
            {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2},
            4,
        ),
        (lambda: stream().shuffle(seed=3, buffer_size=20), {"ignore_data_skip": True}, 2),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    make: Callable[[], Any], changes: dict[str, Any], checkpoint: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**SAVING, "on_bad_row": "skip", **changes}
    whole = trainer(tmp_path / "whole", rows=make(), **options)
    whole.train()
    folder = tmp_path / "resumed"
    shutil.copytree(
        tmp_path / "whole" / f"checkpoint-{checkpoint}", folder / f"checkpoint-{checkpoint}"
    )
    bad = "skipped_rows_train.jsonl"
    if (tmp_path / "whole" / bad).exists():  # as it is when the run is killed later
        shutil.copy(tmp_path / "whole" / bad, folder / bad)
    resumed = trainer(folder, rows=make(), **options)
    resumed.train("auto")
    assert resumed.started_at == checkpoint
    assert same_weights(whole, resumed)
    names = ["loss", "learning_rate", "rewards/margins", "num_tokens", "num_tokens_read"]
    names += [] if "ignore_data_skip" in changes else ["epoch"]
    names += ["skipped_rows"]
    for got, want in zip(logs_of(resumed), logs_of(whole), strict=True):
        assert [got.get(name) for name in names] == [want.get(name) for name in names]
    if (tmp_path / "whole" / bad).exists():
        assert (folder / bad).read_text() == (tmp_path / "whole" / bad).read_text()


def test_rows_that_were_trained_on_are_passed_without_being_tokenised(tmp_path: Path) -> None:
    trainer(tmp_path, rows=stream(), **SAVING).train()
    again = trainer(tmp_path, rows=stream(), **{**SAVING, "max_steps": 7})
    data: Any = again.train_dataset
    seen: list[int] = []
    inner = data.read

    def noting(window: Any) -> Any:
        seen.extend(index for index, _ in window)
        return inner(window)

    data.read = noting
    again.train("auto")
    assert seen[0] == 24  # six steps of four pairs


def test_other_rows_than_then_are_refused(tmp_path: Path) -> None:
    trainer(tmp_path, rows=stream().shuffle(seed=1, buffer_size=50), **SAVING).train()
    more = {**SAVING, "max_steps": 8}
    other = trainer(tmp_path, rows=stream().shuffle(seed=2, buffer_size=50), **more)
    with pytest.raises(ConfigError, match=r"row 23 is another one.*seed"):
        other.train("auto")
    with pytest.raises(ConfigError, match="is of a run on a stream"):
        trainer(tmp_path, rows=ROWS, **more).train("auto")


# -- what cannot be --------------------------------------------------------------------------------


def never() -> Iterator[Any]:
    raise AssertionError("a refusal reads nothing")
    yield


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no end": ({"max_steps": -1}, "Set max_steps"),
    "packing": ({"tokens_per_batch": 64}, "tokens_per_batch is not supported with Iter"),
    "log-probs": ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs is not supported"),
    "hidden": (
        {"method": "tdpo2", "precompute_ref_hidden": True},
        "precompute_ref_hidden is not supported",
    ),
    "workers": ({"dataloader_num_workers": 2}, "dataloader_num_workers"),
    "order": ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
    "a generator": ({"rows": "generator"}, "IterableDataset.from_generator"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_stream_cannot_serve_is_refused_before_it_is_read(case: str, tmp_path: Path) -> None:
    changes, said = REFUSED[case]
    changes = {"rows": "stream", **changes}
    made = {"stream": stream(never), "generator": never()}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(one) for name, one in value.items()}
        return made.get(value, value) if isinstance(value, str) else value

    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, tiny_model(), **{name: filled(value) for name, value in changes.items()})


def test_elsewhere_streams_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Dataset\.from_list\(list\(stream\.take\(1000\)\)\)"):
        prepare_pairs(stream(never), byte_tokenizer())
    with pytest.raises(ConfigError, match=r"itertools\.islice"):
        prepare_pairs(never(), byte_tokenizer())


def test_a_stream_without_a_usable_row_ends(tmp_path: Path) -> None:
    empty = trainer(tmp_path, rows=stream([BAD, BAD]), on_bad_row="skip")
    with pytest.raises(PrefkitError, match="without a usable row; 2 were left out"):
        empty.train()


@pytest.mark.slow
def test_two_processes_read_other_rows_and_go_on(tmp_path_factory: Any) -> None:
    folder = (
        launched_once(tmp_path_factory, 2, ROOT / "tests/train/trainer_processes_work.py")
        / "stream"
    )
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    tokenizer = byte_tokenizer()
    for rank, one in enumerate(found):
        rows = list(itertools.islice(endless(), rank, 200, 2))  # each reads every other row
        texts = [row["prompt"] + row["chosen"] for row in rows]
        want = [[*tokenizer(text)["input_ids"], 256] for text in texts]
        assert one["seen"] == want[: len(one["seen"])]
        assert len(one["seen"]) >= 16  # four steps of two batches of two
        assert one["rest"] == want[8 : 8 + len(one["rest"])]
        assert one["same"]
        assert "a seed" in one["said"]
