"""The sweep over types of models: no type ends it, and what it found is what it writes."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.models.__main__ import main
from benchmarks.models.miniatures import model_types
from benchmarks.models.named import NAMED
from benchmarks.models.one import Record, look
from benchmarks.models.page import page, summary
from benchmarks.models.pool import each_by_itself

RIGHT = Record("llama", "right", layout="shared", off64={"shared": 1e-14}, methods=["dpo"])
FOUND = [
    Record("mamba", "right", layout="padded", fallback="it is | recurrent"),
    RIGHT,
    Record("xlnet", "wrong", words="padded off by 1e-01", layout="padded"),
    Record("t5", "refused", words="no head"),
]


def by_name(name: str) -> str:
    """What a type may do to its process."""
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "stops":
        signal.pause()
    if name == "eats":
        bytearray(1 << 40)
    return name.upper()


def test_a_type_that_dies_or_stops_ends_its_own_process_alone() -> None:
    names = ["dies", "right", "stops", "eats", "last"]
    found = dict(each_by_itself(by_name, names, jobs=2, seconds=2.0))
    assert found == {
        "dies": "its process died with exit code -9",
        "right": "RIGHT",
        "stops": "took more than 2 s",
        "eats": "its process died with exit code 1",
        "last": "LAST",
    }


def test_the_page_has_the_named_models_first_and_every_reason() -> None:
    text = page(FOUND)
    named, others = text.split("## All others")
    assert "`llama` Llama" in named
    assert "1e-14" in named
    assert "`mamba`" in others
    assert "it is \\| recurrent" in others
    assert "**wrong**: padded off by 1e-01" in others
    assert "**refused**: no head" in others


def test_the_summary_counts() -> None:
    assert summary(FOUND) == (
        "Of 4 types: 2 train right, 1 of them in shared rows, 1 refused by name, 1 wrong, 0 crash, "
        "0 cannot be made."
    )


def written(path: Path, *records: Record) -> Path:
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in records), encoding="utf-8")
    return path


def test_types_that_were_looked_at_are_left_out(tmp_path: Path) -> None:
    """Nothing is left to do here; the exit status is that of what was found before."""
    out = written(tmp_path / "found.jsonl", *FOUND)
    wrote = tmp_path / "models.md"
    assert main(["--types", "llama", "--out", str(out), "--write", str(wrote)]) == 0
    assert "Of 1 types: 1 train right" in wrote.read_text(encoding="utf-8")
    assert main(["--types", "llama,xlnet", "--out", str(out)]) == 1


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "found.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"found\.jsonl is not of an earlier run"):
        main(["--types", "llama", "--out", str(tmp_path / "found.jsonl")])


def test_a_type_that_transformers_does_not_have_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--types", "llama,lama"])
    assert "has no type lama" in capsys.readouterr().err


def test_every_named_type_exists() -> None:
    assert NAMED.keys() <= {*model_types()}


def test_one_type_is_looked_at_from_its_miniature_to_its_numbers() -> None:
    found = look("olmo2")
    assert (found.verdict, found.layout, found.words) == ("right", "shared", "")
    assert found.methods == ["dpo", "tdpo2"]
    assert {*found.off64} == {"padded", "shared", "separate"}
    assert found.off32["checkpointing"] == 0.0


def test_a_type_that_is_refused_or_cannot_be_made_is_said_so() -> None:
    refused, not_built = look("prophetnet"), look("no_such_type")
    assert refused.verdict == "refused"
    assert "does not call its head once" in refused.words
    assert not_built.verdict == "not built"
    assert "no_such_type" in not_built.words
