"""The first wrong step as a judge model sees it (as in Step-DPO, arXiv 2406.18629).

The judge reads problem, right solution and the numbered steps, comments on one step after the
other, and closes with a list of verdicts. The first step it calls neutral or incorrect is taken as
the first wrong one. What it writes is read with patience: Markdown, other separators, a missing
heading, ranges ("Steps 1-3: correct") and verdicts in plain sentences are understood; of repeated
verdicts the last one counts. What it thinks (`<think>…</think>`) and what it only asks ("Step 1:
incorrect?") are no verdicts, nor is an answer that the limit of tokens cut off: what stands in it
may be a thought, or be taken back later.
"""

import re
from collections.abc import Callable, Generator, Sequence

from prefkit.data.text.thoughts import spoken
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.localise.verdict import Verdict

PROMPT = """\
You are checking a student's work, one step at a time.

### Problem
{problem}

### Correct solution
{solution}

### Student's steps
{steps}

Go through the student's steps in order and say in a sentence whether each one is right, given the \
problem and the steps before it. A step may differ from the correct solution and still be right. \
Use at most 200 words and do not solve the problem again.
Label each step: "correct" = it is right and helps; "neutral" = it is not wrong but leads nowhere; \
"incorrect" = it holds a mistake. Stop at the first step that is incorrect.
End with exactly this form:

Final Decision:
Step 1: correct; Step 2: neutral; Step 3: incorrect
"""

# Why a judge that was asked gave no verdict, as the manifest counts it.
CUT_OFF = "cut off by judge_max_tokens"
CUT_OFF_THINKING = "cut off by judge_max_tokens while thinking"
CUT = (CUT_OFF, CUT_OFF_THINKING)
UNREAD = "the judge cannot read so long a text"
REFUSED = "ended by the judge's server (content filter)"
NOTHING_SAID = "nothing but a thought"
SILENT = "without a verdict"
PARTIAL = "without a verdict on every step"

_LABEL = re.compile(r"\s*Step\s+\d+\s*[:.]\s*", re.I)
_HEADING = re.compile(r"final\s+(?:decision|verdict|judge?ment)s?", re.I)
_WORD = r"(?P<word>in-?correct|not\s+(?:quite\s+)?(?:correct|right)|wrong|neutral|correct|right)"
_TO = r"(?:-|–|—|\bto\b|\bthrough\b)"
_NEXT = rf"(?:{_TO}|,\s*and\b|,|&|\band\b)\s*(?:steps?\s*)?#?"
_STEPS = rf"\d{{1,4}}(?:\s*{_NEXT}\d{{1,4}}){{0,12}}"  # bounded: no text may take long
_VERDICT = re.compile(
    rf"(?<!\bif )(?<!\bwhether )\bsteps?\s*#?\s*(?P<steps>{_STEPS})\s*"
    r"(?:(?:[:=\-–—>.|)]\s*)+"
    r"|(?:is|are|was|were|seems?|looks?)\s+(?:all\s+|both\s+|also\s+|therefore\s+|clearly\s+)?)"
    rf"{_WORD}\b(?!\s*(?:\?|/|\bor\b))",
    re.I,
)
_RANGE = re.compile(rf"(?P<first>\d+)(?:\s*{_TO}\s*(?:steps?\s*)?#?(?P<last>\d+))?", re.I)
_MARKDOWN = re.compile(r"[*_`#]+|</?[a-z]+>", re.I)


def judge_prompt(problem: str, solution: str, steps: Sequence[str]) -> str:
    """What the judge is asked.

    Args:
        problem: the question's text.
        solution: a right solution, or at least the right answer.
        steps: of the solution to be judged; labels "Step 3:" of their own are replaced.
    """
    numbered = "\n".join(
        f"Step {number}: {_LABEL.sub('', step, count=1).strip()}"
        for number, step in enumerate(steps, start=1)
    )
    return PROMPT.format(problem=problem.strip(), solution=solution.strip(), steps=numbered)


def parse_verdict(text: str, count: int) -> Verdict:
    """The first step that a judge's answer marks as neutral or incorrect.

    Args:
        text: what the judge wrote.
        count: steps that were judged.

    Returns:
        step None where the text calls every step correct, or, with its `failure`, where it holds no
        verdict, not one on every step, or names a step that does not exist as the first bad one.
    """
    text = _MARKDOWN.sub(" ", spoken(text))
    headings = list(_HEADING.finditer(text))
    part = text[headings[-1].end() :] if headings else text
    verdicts = _verdicts(part, count) or _verdicts(text, count)
    if not verdicts:
        return Verdict(None, "the judge's answer holds no verdict", failure=SILENT)
    for number in sorted(verdicts):
        if verdicts[number] != "correct":
            if not 1 <= number <= count:
                reason = f"the judge speaks of step {number} of {count}"
                return Verdict(None, reason, failure=SILENT)
            return Verdict(number - 1, f"the judge calls the step {verdicts[number]} (likely)")
    every = set(range(1, count + 1)) <= set(verdicts)
    if not every:
        return Verdict(None, "the judge calls correct what it speaks of", failure=PARTIAL)
    return Verdict(None, "the judge calls every step correct", all_right=True)


def judge(
    problem: str,
    solution: str,
    steps: Sequence[str],
    request: Callable[[str], Request],
) -> Generator[list[Request], list[Completion], Verdict]:
    """Asks the judge once.

    Args:
        problem, solution, steps: see `judge_prompt`.
        request: makes the request from the prompt's text (the chat template is its business).

    Yields:
        One list with one request; send its completion.

    Returns:
        The verdict; where the judge gave none its `failure` is one of the names above.
    """
    (answer,) = yield [request(judge_prompt(problem, solution, steps))]
    failure = _unsaid(answer)
    if failure:
        return Verdict(None, f"the judge's answer: {failure}", failure=failure)
    return parse_verdict(answer.text, len(steps))


def _unsaid(answer: Completion) -> str:
    """Why a judge's answer holds no verdict whatever its words are; "" = it may hold one."""
    if answer.note == "unread":
        return UNREAD
    if answer.note == "refused":
        return REFUSED
    if answer.finish == "length":
        return CUT_OFF if spoken(answer.text).strip() else CUT_OFF_THINKING
    return NOTHING_SAID if answer.note == "thought" else ""


def _verdicts(text: str, count: int) -> dict[int, str]:
    """Step number (from 1) → correct | neutral | incorrect; later words replace earlier ones."""
    found: dict[int, str] = {}
    for match in _VERDICT.finditer(text):
        word = match["word"].lower()
        if word != "neutral":
            word = "correct" if word in ("correct", "right") else "incorrect"
        for part in _RANGE.finditer(match["steps"]):
            first = int(part["first"])
            last = min(int(part["last"] or first), count)
            found.update(dict.fromkeys([first, *range(first + 1, last + 1)], word))
    return found
