"""README's loop as it is printed, on the embedded model; needs prefkit alone.

python readme_loop.py README.md
"""

import re
import sys
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefkit
from prefkit.data import ReadOptions, prepare_pairs

ASSETS = Path(prefkit.__file__).parent / "demo" / "assets"


def loop_of(readme: Path) -> str:
    """The code under "In a loop you already have"."""
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    (loop,) = [block for block in blocks if "preference_loss" in block]
    return str(loop)


def margins_of(loop: str) -> list[float]:
    """Runs the loop on the same eight pairs six times; the margin that each step found."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    model, reference = (AutoModelForCausalLM.from_pretrained(ASSETS / "model") for _ in range(2))
    model, reference = model.float().train(), reference.float().requires_grad_(False)
    pairs = prepare_pairs(str(ASSETS / "pairs.jsonl"), tokenizer, reading=ReadOptions(level="step"))
    sides = [side for i in range(8) for side in (pairs[i][1].chosen, pairs[i][1].rejected)]
    ids = [torch.from_numpy(side.ids).long() for side in sides]
    scored = [torch.from_numpy(side.scored) for side in sides]
    labels = [torch.where(s, i, -100) for s, i in zip(scored, ids, strict=True)]
    padded = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    margins: list[float] = []

    def batches():
        for _ in range(6):
            yield padded
            margins.append(float(names["out"].metrics["rewards/margins"]))

    names = {
        "torch": torch,
        "model": model,
        "reference": reference,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4),
        "batches": batches(),
    }
    exec(compile(loop, "README.md", "exec"), names)
    return margins


if __name__ == "__main__":
    found = margins_of(loop_of(Path(sys.argv[1])))
    print(f"margins {found[0]:.3f} -> {found[-1]:.3f}")
    sys.exit(0 if found == sorted(found) and found[-1] > found[0] + 0.01 else 1)
