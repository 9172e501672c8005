"""Do contrastive scores find the wrong tokens? The small world knows them: AUC of 1 − s_t.

The tiny model samples solutions of training problems; right and wrong ones are selected as cDPO
does (arXiv 2411.19943, section 4.1), the positive and the negative model are trained, and the
rejected solutions of *other* problems are scored. A token is wrong where it is a digit of a result
that differs from the right one, given what stands before it.

    OMP_NUM_THREADS=1 python -m benchmarks.critical_tokens

Prints, for LoRA and for full fine-tuning and several b, how well 1 − s_t ranks the wrong tokens of
the first wrong line above all others (area under the ROC curve), and beside it 1 − p_t of the start
model alone, which needs no second model.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.critical_tokens_plot import plot
from benchmarks.machine import facts
from prefkit.build.cdpo import half_of
from prefkit.build.contrast import ContrastModels, ContrastSettings, train_two_models
from prefkit.demo import arithmetic as world
from prefkit.demo.run import MODEL
from prefkit.score import ScoreFields, score_pairs

DOUBTFUL = 0.9
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
SETTINGS = {
    "LoRA": ContrastSettings(),
    "full": ContrastSettings(adapter="none", learning_rate=1e-4),
}


@dataclass(frozen=True)
class Solution:
    """A sampled solution with its wrong tokens (characters here).

    Attributes:
        first: (n,) bool, digits of the first wrong line's result that differ from the right ones.
        any: (n,) bool, the same in every line, given the operands as the line has them.
    """

    prompt: str
    text: str
    first: np.ndarray
    any: np.ndarray


@dataclass(frozen=True)
class Found:
    """What was measured of one pair of models at one b.

    Attributes:
        auc, auc_any: of 1 − s for `Solution.first` and `Solution.any`.
        doubtful: as `auc_any`, among the tokens to which the start model gave less than 0.9.
        wrong, other: mean s of the first wrong line's wrong tokens, and of all others.
        lowest: share of solutions whose token of the lowest s is a wrong one (of any line).
    """

    auc: float
    auc_any: float
    doubtful: float
    wrong: float
    other: float
    lowest: float


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney).

    Args:
        scores: (n,) high where positive is expected.
        positive: (n,) bool.
    """
    values, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each value, from 1
    p = int(positive.sum())
    total = float(ranks[place][positive].sum())
    return (total - p * (p + 1) / 2) / (p * (len(scores) - p))


def marked(problem: world.Problem, text: str) -> Solution | None:
    """The solution with its wrong tokens; None where the first mistake is no wrong result."""
    verdict = world.check(problem, text)
    lines, at = world.split_lines(text), verdict.first_wrong
    if at is None or at >= min(len(lines), len(problem.lines)):
        return None
    right = problem.lines[at]
    front = right.index("=") + 1
    if len(lines[at]) != len(right) or lines[at][:front] != right[:front]:
        return None
    first, every = np.zeros(len(text), bool), np.zeros(len(text), bool)
    start = 0
    for place, line in enumerate(lines):
        wrong = _wrong_digits(line)
        every[start : start + len(line)] = wrong
        if place == at:
            first[start : start + len(line)] = wrong
        start += len(line)
    return Solution(problem.prompt, text, first, every) if first.any() else None


def _wrong_digits(line: str) -> np.ndarray:
    """(len(line),) bool: digits of the result that differ from that of the line's own operands."""
    wrong = np.zeros(len(line), bool)
    left, equals, result = line.rstrip("\n").partition("=")
    try:
        right = str(int(left[:2]) + int(left[2:]))
    except ValueError:
        return wrong
    if equals and len(right) == len(result):
        for i, (a, b) in enumerate(zip(right, result, strict=True)):
            wrong[len(left) + 1 + i] = a != b
    return wrong


def sample(problems: Sequence[world.Problem], samples: int, seed: int) -> list[list[Any]]:
    """Transcripts of the tiny model at temperature 1, problem by problem."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefkit.demo.evaluate import evaluate

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(MODEL),
        AutoTokenizer.from_pretrained(MODEL),
    )
    found = evaluate(model, tokenizer, problems, temperature=1.0, samples=samples, seed=seed)
    ended = found.transcripts
    return [[t for t in ended[i : i + samples] if t.ended] for i in range(0, len(ended), samples)]


def select(groups: Sequence[Sequence[Any]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Solutions for the positive and the negative model, as cDPO selects them."""
    positive, negative = [], []
    for transcripts in groups:
        right = [t for t in transcripts if t.verdict.answer_right]
        wrong: dict[Any, list[Any]] = {}
        for t in transcripts:
            if not t.verdict.answer_right:
                wrong.setdefault(t.verdict.answer, []).append(t)
        by_size = sorted(wrong.values(), key=len, reverse=True)
        positive += [_row(t) for t in right[:1]]
        negative += [_row(group[0]) for group in half_of(by_size)]
    return positive, negative


def _row(transcript: Any) -> dict[str, str]:
    return {"prompt": transcript.problem.prompt, "response": transcript.text}


def fresh_mistakes(problems: Sequence[world.Problem], seed: int) -> list[Solution]:
    """One wrong solution each of problems that have one among four samples."""
    found = []
    for transcripts in sample(problems, 4, seed):
        solutions = [s for t in transcripts if (s := marked(t.problem, t.text))]
        found += solutions[:1]
    return found


def scores_of(solutions: Sequence[Solution], models: ContrastModels | None, b: float) -> np.ndarray:
    """(tokens of all solutions,) s_t; without models, p_t of the start model."""
    rows = [{"prompt": s.prompt, "chosen": " ", "rejected": s.text} for s in solutions]
    for row, solution in zip(rows, solutions, strict=True):
        row["chosen"] = world.parse_prompt(solution.prompt).solution
    names = (MODEL, MODEL) if models is None else models
    options = ScoreFields(beta=0.0 if models is None else b, batch_size=64)
    return score_pairs(rows, str(names[0]), str(names[1]), options).scores


def measure(solutions: Sequence[Solution], s: np.ndarray, start: np.ndarray) -> Found:
    """How well 1 − s ranks the wrong tokens.

    Args:
        s: (tokens of all solutions,) scores.
        start: (tokens of all solutions,) probabilities under the start model.
    """
    first = np.concatenate([one.first for one in solutions])
    every = np.concatenate([one.any for one in solutions])
    ends = np.cumsum([len(one.text) for one in solutions])[:-1]
    lowest = [
        bool(one.any[int(np.argmin(part))])
        for one, part in zip(solutions, np.split(s, ends), strict=True)
    ]
    return Found(
        auc=area(-s, first),
        auc_any=area(-s, every),
        doubtful=area(-s[start < DOUBTFUL], every[start < DOUBTFUL]),
        wrong=float(s[first].mean()),
        other=float(s[~first].mean()),
        lowest=float(np.mean(lowest)),
    )


@dataclass(frozen=True)
class Material:
    """What is trained on, and what is scored."""

    positive: list[dict[str, str]]
    negative: list[dict[str, str]]
    solutions: list[Solution]


def material(problems: int, samples: int, fresh: int, seed: int) -> Material:
    """Samples for both models, and mistakes in other problems."""
    source = world.stream("train", seed)
    positive, negative = select(sample(list(islice(source, problems)), samples, seed))
    return Material(positive, negative, fresh_mistakes(list(islice(source, fresh)), seed + 1))


LINE = "| {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.0%} |"
HEAD = """\
| models | b | AUC | AUC, every line | of these, p < 0.9 | s, wrong | s, other | lowest s is wrong |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def _line(name: str, b: str, found: Found) -> str:
    return LINE.format(
        name, b, found.auc, found.auc_any, found.doubtful, found.wrong, found.other, found.lowest
    )


def run(
    problems: int,
    samples: int,
    fresh: int,
    seed: int,
    names: Sequence[str] = tuple(SETTINGS),
    strengths: Sequence[float] = STRENGTHS,
    picture: Path | None = None,
) -> dict[tuple[str, float], Found]:
    """The whole measurement, printed as it goes.

    Args:
        problems, samples: sampled for the two models: how many, and solutions of each.
        fresh: other problems, whose mistakes are scored.
        seed: of problems, samples and trainings.
        names: of `SETTINGS`.
        strengths: values of b.
        picture: where to draw the scores at the first b that is 1, with the first of `names`.

    Returns:
        What was found, by setting and b; the start model alone is ("start", 0).
    """
    begin = time.perf_counter()
    given = material(problems, samples, fresh, seed)
    solutions = given.solutions
    print(
        f"seed {seed}: {problems} problems x {samples} samples: {len(given.positive)} right and "
        f"{len(given.negative)} wrong solutions selected, {time.perf_counter() - begin:.0f} s\n"
        f"{len(solutions)} wrong solutions of other problems: "
        f"{sum(len(one.text) for one in solutions)} tokens, "
        f"{sum(int(one.first.sum()) for one in solutions)} wrong ones in first wrong lines\n\n"
        f"{HEAD}",
        flush=True,
    )
    start = scores_of(solutions, None, 0)
    found = {("start", 0.0): measure(solutions, start, start)}
    print(_line("start model alone, 1 - p", "", found["start", 0.0]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            models = train_two_models(
                given.positive, given.negative, str(MODEL), Path(folder) / name, SETTINGS[name]
            )
            for b in strengths:
                s = scores_of(solutions, models, b)
                found[name, b] = measure(solutions, s, start)
                print(_line(name, str(b), found[name, b]), flush=True)
                if picture and (name, b) == (names[0], 1.0):
                    plot(solutions, s, picture)
    print(f"\n{time.perf_counter() - begin:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--problems", type=int, default=300, help="problems sampled for the two models")
    add("--samples", type=int, default=32, help="solutions a problem")
    add("--fresh", type=int, default=400, help="other problems, whose mistakes are scored")
    add("--seed", type=int, default=0)
    add("--picture", type=Path, help="PNG of the scores at b 1 (LoRA)")
    options = parser.parse_args()
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft|transformers")
    print("; ".join(f"{name} {value}" for name, value in facts("cpu").items()))
    run(**vars(options))


if __name__ == "__main__":
    main()
