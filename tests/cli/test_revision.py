"""An adapter belongs to one revision of its base model, and is trained and merged on it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.cli.test_cli import ROOT, write_rows
from tests.train.trainer_cases import ROWS, save_model

NAME = "somebody/small"
CODE = """
import sys
from prefkit.cli.main import main

rows, adapter, merged, again = sys.argv[1:]
shared = ["--train_data", rows, "--max_steps", "1", "--disable_tqdm", "true"]
lora = ["--adapter", "lora", "--lora_r", "2", "--lora_target_modules", "all-linear"]
named = ["--model", "somebody/small", "--revision", "v1"]
assert main(["train", *named, *lora, *shared, "--output_dir", adapter]) == 0
assert main(["merge", adapter, "--out", merged]) == 0
assert main(["train", "--model", adapter, *shared, "--output_dir", again]) == 0
"""


def put_into_cache(cache: Path, revision: str, commit: str, scale: float) -> Path:
    """A model as the Hub's client keeps a revision of it; returns its folder."""
    folder = cache / "hub" / "models--somebody--small"
    snapshot = folder / "snapshots" / commit
    shutil.copytree(save_model(cache / f"made-{revision}", "llama", scale=scale), snapshot)
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return snapshot


def test_an_adapter_of_a_revision_is_merged_onto_it(tmp_path: Path) -> None:
    put_into_cache(tmp_path, "main", "a" * 40, scale=1.0)
    base = put_into_cache(tmp_path, "v1", "b" * 40, scale=3.0)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    adapter, merged, again = (tmp_path / name for name in ("adapter", "merged", "again"))
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, rows, str(adapter), str(merged), str(again)],
        env={**os.environ, **offline},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{NAME} at v1: " in done.stdout
    for folder in (adapter, again):  # an adapter that goes on stays one of v1
        assert json.loads((folder / "adapter_config.json").read_text())["revision"] == "v1"
    ids = torch.tensor([[5, 9, 200, 31, 7, 8]])
    whole = AutoModelForCausalLM.from_pretrained(merged)
    parts = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, parts(ids).logits, rtol=1e-4, atol=1e-4)
