"""README's loop as it is printed, on the embedded model; needs prefkit alone.

python readme_loop.py README.md
"""

import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefkit
from prefkit.data import PairCollator, ReadOptions, prepare_pairs

ASSETS = Path(prefkit.__file__).parent / "demo" / "assets"


def loop_of(readme: Path) -> str:
    """The code under "In a loop you already have"."""
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    (loop,) = [block for block in blocks if "fused_preference_loss" in block]
    return str(loop)


def margins_of(loop: str) -> list[float]:
    """Runs the loop on the same eight pairs six times; the margin that each step found."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    model, reference = (AutoModelForCausalLM.from_pretrained(ASSETS / "model") for _ in range(2))
    model, reference = model.float().train(), reference.float().requires_grad_(False)
    pairs = prepare_pairs(str(ASSETS / "pairs.jsonl"), tokenizer, reading=ReadOptions(level="step"))
    batch = PairCollator(tokenizer.pad_token_id)([pairs[i] for i in range(8)])
    margins: list[float] = []

    def batches():
        for _ in range(6):
            yield batch
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
