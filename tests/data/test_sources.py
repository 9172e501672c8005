"""Sources by split: the first rows of a file, a folder of files, a configuration of a dataset."""

import json
from pathlib import Path

import pytest

from prefkit.data.sources.files import load_rows
from prefkit.data.sources.splits import parts_of
from prefkit.errors import PrefkitError, RowError

datasets = pytest.importorskip("datasets")
ROWS = [{"prompt": "a", "chosen": str(i), "rejected": "x"} for i in range(5)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", ("train", None)),
        ("train[:3]", ("train", 3)),
        ("test[:0]", ("test", 0)),
        ("train[10%:]", ("train[10%:]", None)),
    ],
)
def test_a_split_may_name_its_first_rows(split: str, parts: tuple) -> None:
    assert parts_of(split) == parts


@pytest.mark.parametrize("split", ["train[1:3]", "train[:10%]", "train[", "train[:3]+test"])
def test_other_parts_are_refused(split: str) -> None:
    with pytest.raises(PrefkitError, match=r"such as train\[:1000\]"):
        load_rows(ROWS, split=split)


def test_the_first_rows_of_every_kind_of_source(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "saved"))
    several = datasets.DatasetDict({"train": table, "test": table})
    for source in (file, ROWS, table, several, tmp_path / "saved"):
        assert [row["chosen"] for row in load_rows(source, split="train[:2]")] == ["0", "1"]
        assert len(load_rows(source, split="train[:99]")) == len(load_rows(source)) == 5


def test_a_broken_line_is_among_the_first_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    file.write_text(f"{{broken\n{file.read_text()}")
    first, second = load_rows(file, split="train[:2]")
    assert isinstance(first, RowError)
    assert isinstance(second, dict)


def test_a_folder_of_files_has_the_splits_that_their_names_say(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:2])
    assert len(load_rows(tmp_path)) == 5
    assert len(load_rows(tmp_path, split="test")) == 2
    assert len(load_rows(tmp_path, split="train[:3]")) == 3
    assert len(load_rows(tmp_path, split="train[:9]")) == 5
    assert [row["chosen"] for row in load_rows(tmp_path, split="train[3:]")] == ["3", "4"]
    with pytest.raises(PrefkitError, match="split 'dev'"):
        load_rows(tmp_path, split="dev")


def test_a_configuration_stands_behind_the_name(tmp_path: Path, monkeypatch) -> None:
    """As a name on the Hub: here of a folder that describes two."""
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs" / "one.jsonl", ROWS)
    write(tmp_path / "pairs" / "two.jsonl", ROWS[:2])
    described = "configs:\n" + "".join(
        f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two")
    )
    (tmp_path / "pairs" / "README.md").write_text(f"---\n{described}---\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_rows("pairs:one")) == 5
    assert len(load_rows("pairs:two")) == 2
    with pytest.raises(PrefkitError, match="pairs:three: is no file here"):
        load_rows("pairs:three")
