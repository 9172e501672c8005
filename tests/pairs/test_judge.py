"""What a judge model writes of the steps of a solution, and what is read from it."""

from typing import Any

import pytest

from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.localise.judge import (
    CUT_OFF,
    CUT_OFF_THINKING,
    NOTHING_SAID,
    PARTIAL,
    REFUSED,
    SILENT,
    UNREAD,
    judge,
    judge_prompt,
    parse_verdict,
)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Fine.\nFinal Decision:\nStep 1: correct; Step 2: neutral; Step 3: incorrect", 1),
        ("Final Decision:\nStep 1: correct; Step 2: incorrect", 1),
        ("**Final Decision:**\n- **Step 1**: Correct\n- **Step 2**: INCORRECT\n", 1),
        ("final decision: step 1 - correct, step 2 - correct, step 3 - wrong", 2),
        ("Step 1 is correct. Step 2 is correct. Step 3 is incorrect.", 2),
        ("Step 1: correct\nStep 2: correct\nStep 3: not correct", 2),
        ("Final Decision:\nStep 1: incorrect\n\nWait.\nFinal Decision:\nStep 1: correct; "
         "Step 2: incorrect", 1),
        ("Step 1: incorrect? No. Step 1: correct; Step 2: correct; Step 3: incorrect", 2),
        ("## Final Decision\n\n1. Step 1: `correct`\n2. Step 2: `neutral`", 1),
        ("Final Decision:\nStep 1: correct; Step 2: correct; Step 3: correct", None),
        ("Step 3 adds 2 and 3, which is wrong.\nFinal Decision:\nStep 1: incorrect", 0),
        ("Step 1: incorrect? no.", None),
        ("Step 1: incorrect ? No, step 2: incorrect", 1),
        ("Is step 1 correct? Step 1 is correct. If step 2 was wrong, we would see it. "
         "Steps 2 and 3 are incorrect", 1),
        ("Step 1: correct/neutral/incorrect", None),
        ("Steps 2-4: incorrect", 1),
        ("Steps 1 and 2: correct", None),
        ("Steps 1 and 2: correct; Step 3: incorrect", 2),
        ("Steps 1–2 are both correct. Step 3 is wrong", 2),
        ("**Steps 1 to 2:** correct\n**Step 3:** incorrect", 2),
        ("Steps 1, 2, and 3: incorrect", 0),
        ("<think>\nFinal Decision:\nStep 1: incorrect\n</think>\nStep 1: correct; "
         "Step 2: incorrect", 1),
        ("Step 1: incorrect, I think.</think>Step 1: correct; Step 3: incorrect", 2),
        ("<think>Final Decision:\nStep 1: incorrect", None),
        ("I cannot say.", None),
        ("", None),
        ("Final Decision:", None),
        ("Final Decision:\nStep 9: incorrect", None),
    ],
)  # fmt: skip
def test_what_judges_write_is_read(text: str, step: int | None) -> None:
    assert parse_verdict(text, 3).step == step


def test_the_judge_is_asked_once() -> None:
    def request(text: str) -> Request:
        return Request(key="q/judge", text=text, temperature=0.0, max_tokens=400, seed=0)

    steps = ["Step 1: 2 + 2 = 4\n", "Step 2: 4 * 2 = 9"]
    asked = judge("What is (2 + 2) * 2?", "It is 8.", steps, request)
    prompt = next(asked)[0].text
    assert "Step 1: 2 + 2 = 4\nStep 2: 4 * 2 = 9\n" in prompt
    assert prompt == judge_prompt("What is (2 + 2) * 2?", "It is 8.", steps)
    answer = Completion(key="q/judge", text="Step 1: correct; Step 2: incorrect", finish="end",
                        tokens=9)  # fmt: skip
    with pytest.raises(StopIteration) as end:
        asked.send([answer])
    assert end.value.value.step == 1


DECIDED = "Final Decision:\nStep 1: correct; Step 2: incorrect"


@pytest.mark.parametrize(
    ("text", "finish", "note", "failure"),
    [
        (DECIDED, "end", "", ""),
        (DECIDED, "length", "", CUT_OFF),  # it may be a draft within a thought
        ("Step 1 is", "length", "", CUT_OFF),
        ("", "length", "thought", CUT_OFF_THINKING),
        (f"<think>{DECIDED}", "length", "", CUT_OFF_THINKING),
        ("", "end", "thought", NOTHING_SAID),
        (f"<think>{DECIDED}", "end", "", SILENT),
        ("", "length", "unread", UNREAD),
        ("", "length", "refused", REFUSED),
        ("I cannot say.", "end", "", SILENT),
        ("Step 7: incorrect", "end", "", SILENT),
        ("Step 1: correct", "end", "", PARTIAL),
        ("Steps 1-2: correct", "end", "", ""),
    ],
)
def test_an_answer_without_a_verdict_has_a_name(
    text: str, finish: Any, note: Any, failure: str
) -> None:
    asked = judge("2 + 2", "4", ["2\n", "3"], lambda text: Request(
        key="q/judge", text=text, temperature=0.0, max_tokens=9, seed=0
    ))  # fmt: skip
    next(asked)
    with pytest.raises(StopIteration) as end:
        asked.send([Completion(key="q/judge", text=text, finish=finish, tokens=9, note=note)])
    assert end.value.value.failure == failure
    assert end.value.value.step == (1 if text == DECIDED and finish == "end" else None)
    assert end.value.value.all_right == (text == "Steps 1-2: correct")


@pytest.mark.parametrize(
    ("text", "all_right"),
    [
        ("Steps 1-3: correct", True),
        ("Steps 1, 2 and 3 are all correct.", True),
        ("Steps 1 and 2: correct", False),
        ("Steps 1-2: correct; Step 3: neutral", False),
        ("<think>Steps 1-3: correct</think>", False),
        ("Steps 1-9999: correct", True),
    ],
)
def test_all_right_needs_a_word_on_every_step(text: str, all_right: bool) -> None:
    assert parse_verdict(text, 3).all_right is all_right
