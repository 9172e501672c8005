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

from benchmarks.critical_tokens_measure import Found, Solution, marked, measure
from benchmarks.critical_tokens_plot import plot
from benchmarks.machine import facts
from prefkit.critical_tokens import ScoreFields, score_pairs
from prefkit.critical_tokens.contrast import ContrastModels, ContrastSettings, train_two_models
from prefkit.demo import arithmetic as world
from prefkit.demo.lines import split_lines
from prefkit.demo.run import MODEL
from prefkit.pairs.pipelines.cdpo import by_answer, half_of
from prefkit.pairs.pipelines.outcome import Attempt

STRENGTHS = (0.5, 1.0, 1.5, 2.0)
SETTINGS = {
    "LoRA": ContrastSettings(),
    "full": ContrastSettings(adapter="none", learning_rate=1e-4),
}


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
    """Solutions for the positive and the negative model, grouped and chosen as the build does."""
    positive, negative = list[dict[str, str]](), list[dict[str, str]]()
    for transcripts in groups:
        attempts = [_attempt(number, t) for number, t in enumerate(transcripts)]
        attempts = [attempt for attempt in attempts if attempt.answer is not None]
        right, wrong = (
            by_answer([a for a in attempts if a.right is kind]) for kind in (True, False)
        )
        for rows, chosen in ((positive, right[:1]), (negative, half_of(wrong))):
            for group in chosen:
                prompt = transcripts[group[0].number].problem.prompt
                rows.append({"prompt": prompt, "response": group[0].text})
    return positive, negative


def _attempt(number: int, transcript: Any) -> Attempt:
    """A transcript as the build's solutions are."""
    verdict = transcript.verdict
    return Attempt(
        number=number,
        text=transcript.text,
        steps=tuple(split_lines(transcript.text)),
        right=verdict.answer_right,
        answer=None if verdict.answer is None else str(verdict.answer),
        ended=transcript.ended,
        decided=True,
    )


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
