"""The models that the comparison starts from: a shipped skill, and a bad habit a seed.

The skill (right arithmetic, both ways) takes a quarter of an hour of one core and is shipped
(benchmarks/papers/assets, made by `python -m benchmarks.papers.start`). The habit is trained in
each run, from its own seed: a teacher that forgets the carry or borrow where the operand is weak,
and hardly ever elsewhere. So errors are rare a step and common a solution, and every seed has a
start, a reference and pairs of its own.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.papers import world
from examples.tiny_model import line_model, training
from examples.tiny_model.line_model import BREAK, EOS, Habit
from prefkit.demo.lines import LARGEST, LINE_LENGTH, SMALLEST

ASSETS = Path(__file__).parent / "assets"
VOCAB = line_model.vocabulary("<>")
LEFT, RIGHT = VOCAB["<"], VOCAB[">"]
LENGTH = world.PROMPT_LENGTH + world.SOLUTION_LENGTH + 1  # the end-of-sequence token included
LONGEST = LENGTH + 2 * LINE_LENGTH + 5  # room for samples with a surplus line
# Lines of steps begin at multiples of 8 when everything is moved by this much.
SHIFT = -(world.PROMPT_LENGTH + 2) % LINE_LENGTH


def make_tokenizer() -> Any:
    """One token a character, those that tell the way included."""
    return line_model.make_tokenizer(VOCAB, LONGEST)


def draw_batch(rng: np.random.Generator, size: int, habit: Habit | None) -> Tensor:
    """(size, 147) int64 ids: prompt, solution, end of sequence. Training problems only."""
    kept: list[np.ndarray] = []
    while len(kept) < size:
        start = rng.integers(SMALLEST, LARGEST + 1, 4 * size)
        shape = (4 * size, world.TERMS)
        terms = rng.integers(1, 10, shape) * rng.choice((-1, 1), shape)
        forward = start[:, None] + terms.cumsum(1)
        backward = start[:, None] + terms[:, ::-1].cumsum(1)
        both = np.concatenate([forward, backward], 1)
        inside = ((both >= SMALLEST) & (both <= LARGEST)).all(1)
        for one, of_one in zip(start[inside], terms[inside], strict=True):
            if world.Problem(int(one), tuple(of_one.tolist())).split == "train":
                kept.append(np.concatenate([[one], of_one]))
    rows = np.stack(kept[:size])
    return torch.from_numpy(encode(rows[:, 0], rows[:, 1:], rng, habit))


def encode(
    start: np.ndarray,  # (n,)
    terms: np.ndarray,  # (n, 14)
    rng: np.random.Generator,
    habit: Habit | None,
) -> np.ndarray:
    """(n, 147) ids of problems and solutions, with the teacher's mistakes where asked."""
    backward = rng.random(start.shape) < 0.5
    in_order = np.where(backward[:, None], terms[:, ::-1], terms)
    columns = line_model.problem_columns(start, terms)
    columns += [np.where(backward, LEFT, RIGHT), BREAK]
    columns += [*line_model.step_columns(start, in_order, rng, habit), EOS]
    return line_model.as_rows(columns, len(start))


def load_skill() -> tuple[Any, Any]:
    """The shipped model that makes no mistakes, widened to fp32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ASSETS, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(ASSETS)


def take_up(model: Any, habit: Habit, seed: int) -> Any:
    """Trains the habit into the model, in place; returns it."""
    training.take_up(model, habit, draw_batch, world.PROMPT_LENGTH, seed=seed)
    return model


def main() -> None:
    """Trains the skill and saves it as the asset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    log, model = training.Log(), line_model.make_model(VOCAB, LONGEST, SHIFT)

    def report(step: int, loss: float) -> None:
        if step % 25 == 0:
            log(f"step {step}: loss {loss:.4f} nats a token")

    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, seed {options.seed}")
    training.learn_skill(
        model,
        draw_batch,
        world.PROMPT_LENGTH,
        steps=options.steps,
        batch_size=40,
        seed=options.seed,
        report=report,
    )
    training.save(model, make_tokenizer(), options.output, half=True)
    log("saved")
    log.write(options.output / "made.log")


if __name__ == "__main__":
    main()
