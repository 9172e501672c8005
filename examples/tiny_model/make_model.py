"""Trains the tiny model that `prefkit demo` starts from: first the skill, then a bad habit.

Phase 1 learns the arithmetic from right solutions until it is sure of it. Phase 2 goes on briefly
with a teacher that forgets the carry (or borrow): in 70 % of the cases where the operand is 7 or
9, else in 8 %. What is left is a model that *can* do the sum but often does not: the start that
preference training can repair. (A model that merely trained too little lacks the skill itself, and
preference losses do not give it one.)

    OMP_NUM_THREADS=1 python -m examples.tiny_model.make_model

Uses one core. What it printed when the shipped model was made is in make_model.log beside it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.tiny_model import training
from examples.tiny_model.line_model import (
    EOS,
    Habit,
    as_rows,
    make_model,
    make_tokenizer,
    problem_columns,
    step_columns,
    vocabulary,
)
from prefkit.demo import arithmetic as world
from prefkit.demo.evaluate import evaluate
from prefkit.demo.lines import LARGEST, LINE_LENGTH, SMALLEST

ASSETS = Path(world.__file__).parent / "assets" / "model"
LONGEST = (2 + world.TERMS + 1) * LINE_LENGTH  # prompt (two lines long), steps, end of sequence
HABIT = Habit(weak_rate=0.7, other_rate=0.08, steps=100, batch_size=32)


def draw_batch(rng: np.random.Generator, size: int, habit: Habit | None) -> Tensor:
    """(n, 65) ids of `size` draws: prompt, solution, end of sequence. Training problems only."""
    start = rng.integers(SMALLEST, LARGEST + 1, size)
    total, terms = start.copy(), np.empty((size, world.TERMS), dtype=np.int64)
    for i in range(world.TERMS):
        term = rng.integers(1, 10, size) * rng.choice((-1, 1), size)
        outside = (total + term < SMALLEST) | (total + term > LARGEST)
        terms[:, i] = np.where(outside, -term, term)
        total += terms[:, i]
    keep = [
        world.Problem(int(s), tuple(t.tolist())).split == "train"
        for s, t in zip(start, terms, strict=True)
    ]
    start, terms = start[keep], terms[keep]
    solution = step_columns(start, terms, rng, habit)
    columns = [*problem_columns(start, terms), *solution, EOS]
    return torch.from_numpy(as_rows(columns, len(start)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skill-steps", type=int, default=400)
    parser.add_argument("--habit-steps", type=int, default=HABIT.steps)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    vocab = vocabulary()
    log, model = training.Log(), make_model(vocab, LONGEST)
    tokenizer = make_tokenizer(vocab, LONGEST)
    validation = world.problems(500, "validation", seed=options.seed)

    def measure(what: str) -> None:
        greedy = evaluate(model, tokenizer, validation)
        sampled = evaluate(model, tokenizer, validation, temperature=1.0)
        log(
            f"{what}: right answers {greedy.accuracy:.1%} greedy, {sampled.accuracy:.1%} sampled; "
            f"every step right {greedy.step_accuracy:.1%} greedy"
        )

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            log(f"step {step}: loss {loss:.3f} nats a token")

    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, seed {options.seed}")
    training.learn_skill(
        model,
        draw_batch,
        world.PROMPT_LENGTH,
        steps=options.skill_steps,
        batch_size=64,
        seed=options.seed,
        report=report,
    )
    measure("the skill")
    habit = replace(HABIT, steps=options.habit_steps)
    seed = options.seed + 1
    training.take_up(model, habit, draw_batch, world.PROMPT_LENGTH, seed=seed, report=report)
    measure("with the habit")
    training.save(model, tokenizer, options.output, half=True)
    log("saved")
    log.write(Path(__file__).with_suffix(".log"))


if __name__ == "__main__":
    main()
