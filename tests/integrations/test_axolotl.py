"""Real runs of `axolotl train` on a CPU, with the plugin and without it (`make axolotl`).

axolotl pins dozens of packages, so it lives in an environment of its own, whose folder
PREFKIT_AXOLOTL names; prefkit is installed there, too.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ENVIRONMENT = os.environ.get("PREFKIT_AXOLOTL")
ASSETS = Path(__file__).parents[2] / "prefkit" / "demo" / "assets"
PLUGIN = "prefkit.integrations.axolotl.PrefkitPlugin"
SEEDED = "of_test.Seeded"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        ENVIRONMENT is None,
        reason="needs axolotl: make axolotl, or PREFKIT_AXOLOTL=its environment",
    ),
]

# TRL 1.9 makes adapters before it seeds anything: two runs of axolotl differ without this plugin.
OUR_MODULE = """
import torch
from axolotl.integrations.base import BasePlugin
from trl import DPOTrainer

class Own(DPOTrainer):
    def _compute_loss(self, model, inputs, return_outputs):
        return model(input_ids=inputs["input_ids"], labels=inputs["input_ids"]).loss

class Seeded(BasePlugin):
    def post_model_load(self, cfg, model):
        torch.manual_seed(0)
"""
BASE = {
    "base_model": str(ASSETS / "model"),
    "rl": "dpo",
    "rl_beta": 0.1,
    "sequence_len": 64,
    "val_set_size": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "logging_steps": 1,
    "bf16": False,
    "seed": 1,
    "dataset_num_proc": 1,
}
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_modules": ["c_attn", "c_fc"],
    "learning_rate": 1e-2,
}
# TRL smooths the second alone, prefkit both.
NOT_PREFKITS = {"dpo_loss_type": ["sigmoid", "robust"], "dpo_label_smoothing": 0.1}
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Run:
    """One run: what it printed, and what it logged, a dict a step and an evaluation."""

    code: int
    output: str
    logs: list[dict[str, float]]

    def series(self, name: str) -> list[float]:
        return [entry[name] for entry in self.logs if name in entry]


@pytest.fixture(scope="module")
def axolotl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """axolotl(**keys of the YAML, rows=…) → Run; the same run is made once."""
    folder = tmp_path_factory.mktemp("axolotl")
    (folder / "of_test.py").write_text(OUR_MODULE)
    made: dict[str, Run] = {}

    def run(rows: list[dict[str, Any]] | None = None, **keys: Any) -> Run:
        name = json.dumps([rows, keys], sort_keys=True)
        if name not in made:
            made[name] = train(folder / str(len(made)), folder, rows or joined(), keys)
        return made[name]

    return run


def train(folder: Path, code: Path, rows: list[dict[str, Any]], keys: dict[str, Any]) -> Run:
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(folder / "pairs.jsonl"), "ds_type": "json", "type": "passthrough.default"}
    places = {
        "datasets": [data],
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**BASE, **places, **keys}))
    done = subprocess.run(
        [
            Path(str(ENVIRONMENT)).absolute() / "bin" / "axolotl",
            "train",
            "config.yaml",
            "--launcher",
            "python",
        ],
        cwd=folder,
        env={**os.environ, **OFFLINE, "PYTHONPATH": str(code)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    states = sorted((folder / "out").glob("checkpoint-*/trainer_state.json"))
    logs = json.loads(states[-1].read_text())["log_history"] if states else []
    return Run(done.returncode, done.stdout, logs)


def steps() -> list[dict[str, Any]]:
    """Two dozen pairs of steps as axolotl's `passthrough` takes them, with a prefix."""
    lines = (ASSETS / "pairs.jsonl").read_text("utf-8").splitlines()[:24]
    pairs = [json.loads(line) for line in lines]
    return [
        {
            "prompt": pair["prompt"],
            "prefix": pair["initial_reason_steps"],
            "chosen": pair["chosen"],
            "rejected": pair["rejected"],
        }
        for pair in pairs
    ]


def joined() -> list[dict[str, Any]]:
    """The same without a prefix: it is a part of the prompt."""
    rows = steps()
    for row in rows:
        row["prompt"] += row.pop("prefix")
    return rows


def assert_same(plain: Run, ours: Run) -> None:
    assert (plain.code, ours.code) == (0, 0), ours.output[-3000:]
    assert "prefkit computes" not in plain.output
    for name in ("loss", "grad_norm"):
        assert len(plain.series(name)) == BASE["max_steps"]
        assert ours.series(name) == pytest.approx(plain.series(name), rel=1e-5)
    assert ours.series("eval_loss") == pytest.approx(plain.series("eval_loss"), rel=1e-5)
    assert len(plain.series("eval_loss")) == 2  # before the first step, and after the last
    assert {key for entry in plain.logs for key in entry} == {
        key for entry in ours.logs for key in entry
    }


def computed(run: Run) -> bool:
    """Whether prefkit said, once, that it computes the loss."""
    return run.output.count("prefkit computes the loss") == 1


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {**LORA, "dpo_loss_type": ["hinge"], "gradient_checkpointing": True},
        {
            "dpo_loss_type": ["ipo", "bco_pair"],
            "dpo_loss_weights": [1.0, 0.1],
            "dpo_use_weighting": True,
            "precompute_ref_log_probs": True,
        },
    ],
    ids=["full", "lora", "several losses"],
)
def test_losses_and_gradients_are_those_without_the_plugin(axolotl: Any, keys: dict) -> None:
    ours = axolotl(plugins=[SEEDED, PLUGIN], **keys)
    assert_same(axolotl(plugins=[SEEDED], **keys), ours)
    assert computed(ours)
    assert "A pair is read as one row" in ours.output


def test_padded_rows_and_a_small_budget_change_nothing(axolotl: Any) -> None:
    keys = {"prefkit_layout": "padded", "prefkit_memory_budget": 4096}
    ours = axolotl(plugins=[SEEDED, PLUGIN], **keys)
    assert_same(axolotl(plugins=[SEEDED]), ours)
    assert "Rows are padded" in ours.output


def test_what_prefkit_has_no_loss_for_is_left_to_trl(axolotl: Any) -> None:
    ours = axolotl(plugins=[SEEDED, PLUGIN], **NOT_PREFKITS)
    assert_same(axolotl(plugins=[SEEDED], **NOT_PREFKITS), ours)
    assert not computed(ours)
    assert ours.output.count("TRL computes the loss in its own way, because") == 1


def test_tdpo2_without_its_kl_is_dpo_and_with_it_is_not(axolotl: Any) -> None:
    plain = axolotl(plugins=[SEEDED])
    without = axolotl(plugins=[SEEDED, PLUGIN], prefkit_method="tdpo2", prefkit_alpha=0)
    assert without.code == 0, without.output[-3000:]
    assert without.series("loss") == pytest.approx(plain.series("loss"), rel=1e-5)
    with_kl = axolotl(plugins=[SEEDED, PLUGIN], prefkit_method="tdpo2", prefkit_alpha=4.0)
    assert with_kl.series("loss")[0] == pytest.approx(plain.series("loss")[0], rel=1e-5)  # KL = 0
    assert with_kl.series("loss")[2] != pytest.approx(plain.series("loss")[2], rel=1e-3)


def test_weights_of_two_are_a_beta_twice_as_large(axolotl: Any) -> None:
    sides = ("chosen", "rejected")  # a character is a token, and the last weight the end's
    rows = [
        {**row, **{f"{side}_weights": [2.0] * (len(row[side]) + 1) for side in sides}}
        for row in joined()
    ]
    weighted = axolotl(rows=rows, plugins=[SEEDED, PLUGIN])
    assert weighted.code == 0, weighted.output[-3000:]
    twice = axolotl(plugins=[SEEDED], rl_beta=0.2)
    for name in ("loss", "grad_norm"):
        assert weighted.series(name) == pytest.approx(twice.series(name), rel=1e-5)


def test_weights_that_trl_would_leave_out_are_refused(axolotl: Any) -> None:
    rows = [{**row, "chosen_weights": [1.0] * len(row["chosen"])} for row in joined()]
    run = axolotl(rows=rows, plugins=[PLUGIN], **NOT_PREFKITS)
    assert run.code != 0
    assert "The rows bring token weights" in run.output
    assert not run.logs


def test_steps_get_no_end_and_their_prefix_is_read(axolotl: Any) -> None:
    ended = axolotl(rows=steps(), plugins=[SEEDED, PLUGIN], prefkit_append_eos="always")
    assert_same(axolotl(plugins=[SEEDED]), ended)
    auto = axolotl(rows=steps(), plugins=[SEEDED, PLUGIN])
    pairs = BASE["micro_batch_size"] * BASE["gradient_accumulation_steps"]
    assert ended.series("num_tokens")[0] - auto.series("num_tokens")[0] == 2 * pairs


def test_steps_that_their_prefix_makes_too_long_are_counted(axolotl: Any) -> None:
    most = 36
    evaluation = {"val_set_size": 0, "eval_strategy": None, "eval_steps": None}
    run = axolotl(rows=steps(), plugins=[PLUGIN], sequence_len=most, max_steps=1, **evaluation)
    kept = [row for row in joined() if len(row["prompt"]) < most]  # a character is a token
    cut = [
        row
        for row in kept
        if len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) > most
    ]
    assert 0 < len(cut) < len(kept)
    assert f"{len(cut)} of {len(kept)} rows are longer than sequence_len" in run.output


def test_a_trainer_with_a_loss_of_its_own_is_refused(axolotl: Any) -> None:
    run = axolotl(plugins=[SEEDED, PLUGIN], trainer_cls="of_test.Own")
    assert run.code != 0
    assert "has a loss that does not name the one that it replaces" in run.output
    assert not run.logs


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"rl": "orpo"}, "Set rl: dpo"), ({"prefkit_beta": 1}, "prefkit_beta is not a key")],
)
def test_a_file_that_cannot_work_is_refused_before_anything_is_loaded(
    axolotl: Any, keys: dict, words: str
) -> None:
    run = axolotl(plugins=[PLUGIN], **keys)
    assert run.code != 0
    assert words in run.output
    assert "Loading weights" not in run.output
