"""The README's loop runs as it is printed, on a real model, and does what it says."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit import SimPO, fused_preference_loss
from prefkit.data import PairCollator, ReadOptions, prepare_pairs
from tests.package.readme_loop import loop_of, margins_of

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "prefkit" / "demo" / "assets" / "model"
PAIRS = ROOT / "prefkit" / "demo" / "assets" / "pairs.jsonl"


def test_the_rows_of_the_page_on_long_context_are_read() -> None:
    page = (ROOT / "docs" / "long_context.md").read_text("utf-8")
    (lines,) = [x for x in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "why_not" in x]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL).float()
    # All step pairs of a few questions, and each right step beside each wrong one.
    prepared = prepare_pairs(str(PAIRS), tokenizer, reading=ReadOptions(level="step")).pairs
    pairs = [prepared[0], prepared[1], prepared[0], replace(prepared[0], row=9)]
    names = {"model": model, "tokenizer": tokenizer, "pairs": pairs}
    exec(compile(lines.replace("longest=1024", "longest=64"), "long_context.md", "exec"), names)
    assert len(names["batch"]["targets"]) < len(names["batch"]["segments"])
    batch = PairCollator(tokenizer.pad_token_id)(pairs)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = model.base_model(**inputs).last_hidden_state.flatten(0, 1)[batch["positions"]]
    stream = (hidden, model.lm_head.weight, batch["targets"], batch["segments"], SimPO())
    padded = fused_preference_loss(*stream, weights=batch["weights"]).loss
    torch.testing.assert_close(names["loss"], padded, rtol=1e-5, atol=1e-5)


def test_the_loop_of_the_readme_trains() -> None:
    loop = loop_of(ROOT / "README.md")
    assert len([line for line in loop.splitlines() if line.strip()]) <= 8
    margins = margins_of(loop)  # of the same pairs: it has to grow
    assert margins == sorted(margins)
    assert margins[-1] > margins[0] + 0.01
