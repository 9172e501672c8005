"""Steps of hostile texts: found in one pass over the text, white space never a step of its own."""

import time

import pytest

from prefkit.pairs.steps import STYLES, label_of, split_steps

UNITS = ["\n", " \n", "\n\n ", "\nStep 1", "Step 1:\n", " ", "Step "]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("unit", UNITS)
def test_four_times_the_text_takes_no_more_than_four_times_the_time(unit: str, style: str) -> None:
    def seconds(count: int) -> float:
        text = "a" + unit * count
        spent = []
        for _ in range(3):
            start = time.process_time()
            steps = split_steps(text, style)
            label_of(text, style)
            spent.append(time.process_time() - start)
        assert "".join(steps) == text
        return min(spent)

    # Squares would give 16; below a few milliseconds the clock and the caches decide.
    assert seconds(16_000) < 9 * seconds(4_000) + 0.02


@pytest.mark.parametrize(
    ("text", "style", "steps"),
    [
        ("a\n \n\t\nb", "lines", ["a\n \n\t\n", "b"]),
        ("a\n  ", "lines", ["a\n  "]),
        (" \n\na\nb", "lines", [" \n\na\n", "b"]),
        ("a\nb\n \n \nc\n", "paragraphs", ["a\nb\n \n \n", "c\n"]),
        ("\n", "lines", ["\n"]),
        ("", "paragraphs", []),
        ("no label\nat all", "numbered", ["no label\nat all"]),
        ("say\n Step 1: a\n\nStep 2. b", "numbered", ["say\n Step 1: a\n\n", "Step 2. b"]),
    ],
)
def test_white_space_belongs_to_the_step_before(text: str, style: str, steps: list[str]) -> None:
    assert split_steps(text, style) == steps
