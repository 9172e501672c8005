"""Do trees train as good a model as pairs one by one, and in what share of the time?

    prefkit build dpo examples/tiny_model/questions --model prefkit/demo/assets/model --out pairs \\
        --samples 16 --temperature 1 --batch_size 128 --pairs all
    python -m benchmarks.trees.accuracy pairs/pairs.jsonl [--seeds 5] [--write FILE]

The embedded tiny model, one epoch of DPO on the same pairs from the same seeds: whole questions in
rows (tree), and pairs dealt to rows by themselves (shared), with budgets that give a step about as
many pairs. Right answers to 500 problems that no pair is about,
greedy; 95 % intervals over the seeds. Time is that of the processors in training alone.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import write_page
from benchmarks.papers.statistics import interval
from benchmarks.whole_step.shapes import TOKENIZER
from prefkit import PreferenceConfig, PreferenceTrainer
from prefkit.demo import arithmetic
from prefkit.demo.evaluate import evaluate

BUDGETS = {"tree": 1536, "shared": 4096}  # tokens a row: some 43 pairs of such a build


def train(layout: str, pairs: str, seed: int) -> tuple[float, float, int, int]:
    """Share of right answers, seconds of the processors, steps and tokens read of one run."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    model = AutoModelForCausalLM.from_pretrained(TOKENIZER).float()
    options: dict[str, Any] = {
        "layout": layout, "tokens_per_batch": BUDGETS[layout], "seed": seed, "num_train_epochs": 1,
        "learning_rate": 6e-5, "beta": 1.0, "lr_scheduler_type": "constant", "report_to": "none",
        "save_strategy": "no", "logging_steps": 1000, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = PreferenceConfig(output_dir=folder, **options)
        trainer = PreferenceTrainer(
            model, args=args, train_dataset=pairs, processing_class=tokenizer
        )
        rows: Any = trainer.train_dataset
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    found = evaluate(model, tokenizer, arithmetic.problems(500, "held_out", 0))
    return found.accuracy, seconds, trainer.state.global_step, rows.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pairs", help="of a build")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    lines = [
        "| layout | right answers, mean (95 %) | CPU s of training, median | tokens an epoch | "
        "steps |",
        "| --- | --- | --- | --- | --- |",
    ]
    found: dict[str, list[tuple[float, float, int, int]]] = {"tree": [], "shared": []}
    for seed in range(options.seeds):
        for layout, runs in found.items():
            runs.append(train(layout, options.pairs, seed))
            print(layout, seed, runs[-1], flush=True)
    for layout, runs in found.items():
        right, seconds = interval([run[0] for run in runs]), sorted(run[1] for run in runs)
        lines.append(
            f"| {layout} | {right.mean:.1%} ({right.low:.1%} to {right.high:.1%}) | "
            f"{seconds[len(seconds) // 2]:.1f} | {runs[0][3]:,} | {runs[0][2]} |"
        )
    print("\n".join(lines))
    if options.write is not None:
        command = f"python -m benchmarks.trees.accuracy {options.pairs} --seeds {options.seeds}"
        write_page(options.write, command, "\n".join(lines))


if __name__ == "__main__":
    main()
