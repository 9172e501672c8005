"""Every configuration of docs/paper_index.md is one that `prefkit train` takes."""

import re
from pathlib import Path

import pytest

from prefkit.cli.train import load_options

PAGE = Path(__file__).parents[2] / "docs" / "paper_index.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_configuration_of_the_index_loads(block, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(block, encoding="utf-8")
    options = load_options([str(path)])
    assert options.given["method"] == options.config.method
    assert options.config.resolved_beta == options.given["beta"]


def test_the_index_has_every_paper_and_both_sizes():
    text = PAGE.read_text(encoding="utf-8")
    for paper in ("2404.11999", "2406.18629", "2407.00782", "2411.19943", "2305.18290"):
        assert f"https://arxiv.org/abs/{paper}" in text
    methods = [re.search(r"^method: (\S+)", block, re.M)[1] for block in BLOCKS]
    for method in ("tdpo2", "step-dpo", "scdpo", "cdpo"):
        assert methods.count(method) == 2, method  # 7B and 70B


def test_what_was_not_checked_is_marked():
    """Settings whose source was not read itself say so."""
    text = PAGE.read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0]: part for part in text.split("\n## ")}
    for field in ("nll_weight", "beta", "learning_rate"):
        assert re.search(rf"^{field}: \S+  # from memory$", sections["RPO"], re.M), field
    assert "secondary text" in sections["DPO"]
    assert "from memory" in sections["SimPO"]
    assert "from memory" in text.split("\n## ")[0]
