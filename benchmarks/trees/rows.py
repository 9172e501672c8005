"""Rows that hang on trees: step pairs of one solution, and samples of one question."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.whole_step.shapes import ROOT, WORDS

Row = dict[str, str]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "model_solutions.jsonl"
_BY = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class Shape:
    """One kind of rows.

    Attributes:
        words: what they are.
        budget: tokens a row of the model (`tokens_per_batch`).
        prompt, steps, length, wrong: of step trees: tokens of the prompt, steps, tokens of each,
            and wrong ones beside each right one.
        samples: of sampled solutions: right ones and as many wrong ones of `length` tokens.
        all_pairs: every right with every wrong one, instead of each with one.
        real: GSM8K's model solutions (OpenAI's release), every right with every wrong one; of the
            first `questions` that have both.
        questions: where some pairs have more in common than others, a round is a pass over all
            pairs of so many questions; 0 = a round is one step.
    """

    words: str
    budget: int
    prompt: int = 0
    steps: int = 0
    length: int = 0
    wrong: int = 1
    samples: int = 0
    all_pairs: bool = True
    real: bool = False
    questions: int = 0


SHAPES = {
    "steps": Shape(
        "a step tree: 24 steps of 40, a wrong one beside each", 2450, 200, 24, 40, questions=1
    ),
    "gsm8k": Shape(
        "GSM8K, four model solutions a question, all pairs", 2200, real=True, questions=8
    ),
    "all": Shape("8 × 8 samples of 400, all pairs", 3400, 100, length=400, samples=8),
    "one": Shape(
        "8 × 8 samples of 400, one pair each", 3400, 100, length=400, samples=8, all_pairs=False
    ),
}


def curve() -> dict[str, Shape]:
    """Step trees of several depths and numbers of wrong siblings, steps of 40 tokens, one a row."""
    return {
        f"{steps} × {wrong}": Shape(
            f"{steps} steps, {wrong} wrong beside each",
            220 + 45 * steps * (1 + wrong),
            200,
            steps,
            40,
            wrong,
            questions=1,
        )
        for steps in (2, 6, 12)
        for wrong in (1, 3)
    }


def rows_of(shape: Shape, tokenizer: Any, questions: int) -> list[Row]:
    """Rows of prompt, prefix, chosen and rejected for so many questions, or as many as a round has.

    Raises:
        FileNotFoundError: the real ones are not there.
    """
    if shape.real:
        return [row for some in _gsm8k(GSM8K, shape.questions) for row in some]
    text = _Text(tokenizer)
    make = _samples if shape.samples else _steps
    return [row for _ in range(shape.questions or questions) for row in make(shape, text)]


def pairs_a_round(shape: Shape) -> int:
    """Pairs that each way reads in a round, at least; of samples a round is always one step."""
    if shape.real:
        return sum(map(len, _gsm8k(GSM8K, shape.questions)))
    return shape.questions * shape.steps * shape.wrong or 1


class _Text:
    """Pieces of the project's own pages, each of so many tokens, one after the other.

    Of a tokenizer that knows words w0, w1, … alone: of these.
    """

    def __init__(self, tokenizer: Any) -> None:
        pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
        self.words = " ".join(page.read_text("utf-8") for page in pages).split()
        if "w0" in tokenizer.get_vocab():
            draw = random.Random(0)
            self.words = [f"w{draw.randrange(WORDS)}" for _ in self.words]
        self.tokenizer = tokenizer
        self.place = 0

    def piece(self, tokens: int) -> str:
        """Whole words of so many tokens, or a few more, the end of the line among them."""
        count = tokens // 3
        while True:
            found = [self.words[(self.place + i) % len(self.words)] for i in range(count)]
            text = " ".join(found) + "\n"
            missing = tokens - len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if missing <= 0:
                self.place += count
                return text
            count += max(1, missing // 4)


def _steps(shape: Shape, text: _Text) -> list[Row]:
    prompt, prefix, rows = text.piece(shape.prompt), "", []
    for _ in range(shape.steps):
        right = text.piece(shape.length)
        rows += [
            {"prompt": prompt, "prefix": prefix, "chosen": right, "rejected": text.piece(n)}
            for n in [shape.length] * shape.wrong
        ]
        prefix += right
    return rows


def _samples(shape: Shape, text: _Text) -> list[Row]:
    prompt = text.piece(shape.prompt)
    right, wrong = ([text.piece(shape.length) for _ in range(shape.samples)] for _ in range(2))
    pairs = [(r, w) for r in right for w in wrong]
    if not shape.all_pairs:
        pairs = list(zip(right, wrong, strict=True))
    return [{"prompt": prompt, "prefix": "", "chosen": r, "rejected": w} for r, w in pairs]


def _gsm8k(path: Path, questions: int) -> Iterator[list[Row]]:
    """The first questions that have right and wrong solutions."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            tried = [one[name] for name in _BY]
            texts = {good: _texts(tried, good) for good in (True, False)}
            rows = [
                {"prompt": one["question"] + "\n", "prefix": "", "chosen": r, "rejected": w}
                for r in texts[True]
                for w in texts[False]
            ]
            if rows and questions:
                questions -= 1
                yield rows


def _texts(tried: list[dict[str, Any]], good: bool) -> list[str]:
    found = (one["solution"].strip() + "\n" for one in tried if one["is_correct"] is good)
    return list(dict.fromkeys(found))
