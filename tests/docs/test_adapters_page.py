"""Every recipe of docs/adapters.md is one that `prefkit train` takes, and its table is true."""

import re
from pathlib import Path

import pytest
import yaml

from prefkit.cli.train import load_options
from prefkit.train import unlike_trl

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
NEEDED = {"model": "m", "train_data": "pairs.jsonl"}


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_recipe_loads(block: str, tmp_path: Path) -> None:
    given = {**NEEDED, **yaml.safe_load(block)}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    assert load_options([str(file)]).given


def test_the_table_of_defaults_names_each_that_a_run_names() -> None:
    table = PAGE.split("## Defaults that are not TRL's")[1]
    for name in unlike_trl.NAMES:
        assert f"`{name}" in table, name
