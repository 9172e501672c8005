"""The examples of docs/convert.md are what `prefkit convert` prints."""

import re
from pathlib import Path
from typing import Any

import pytest

from prefkit.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```\n\n```text\n((\w+)\.yaml.*?)\n```", PAGE, re.S)
INFO = re.findall(r"```json\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(("config", "shown", "name"), EXAMPLES, ids=[one[2] for one in EXAMPLES])
def test_an_example_is_what_is_printed(
    config: str, shown: str, name: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(INFO[0])
    (tmp_path / f"{name}.yaml").write_text(config)
    code = main(["convert", f"{name}.yaml"])
    assert capsys.readouterr().out.strip() == shown
    assert (code == 1) == ("Nothing is written" in shown)


def test_each_trainer_has_an_example() -> None:
    assert len(EXAMPLES) == 3
    assert len(INFO) == 1
