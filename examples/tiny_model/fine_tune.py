"""Plain fine-tuning of the tiny model on its own right answers, as a yardstick for the demo.

Same problems, number of steps, batch size and optimiser as `prefkit demo`; what is learned from is
the right solution each pair was made with, from the first line to the end of sequence.

    python examples/tiny_model/fine_tune.py --seed 0
"""

import argparse
import json
import random
import time

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from prefkit.demo import arithmetic as world
from prefkit.demo.evaluate import evaluate
from prefkit.demo.run import BATCH_SIZE, LEARNING_RATE, MODEL, PAIRS, STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    options = parser.parse_args()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    held_out = world.problems(options.problems, "held_out", options.seed)

    def report(when: str) -> None:
        found = evaluate(model, tokenizer, held_out)
        print(f"{when}: {found.accuracy:.1%} right, every step right {found.step_accuracy:.1%}")

    report("before")
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    texts = [row["prompt"] + row["initial_reason_steps"] + row["full_chosen"] for row in rows]
    ids = torch.tensor(tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"])
    rng, start = random.Random(options.seed), time.perf_counter()
    order: list[int] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / (STEPS // 10))
    )
    for _ in range(STEPS):
        if len(order) < BATCH_SIZE:
            order = rng.sample(range(len(ids)), len(ids))
        batch, order = ids[order[:BATCH_SIZE]], order[BATCH_SIZE:]
        logits = model(batch[:, :-1]).logits[:, world.PROMPT_LENGTH - 1 :]
        labels = batch[:, world.PROMPT_LENGTH :]
        nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"{STEPS} steps of {BATCH_SIZE} solutions in {time.perf_counter() - start:.0f} s")
    report("after ")


if __name__ == "__main__":
    main()
