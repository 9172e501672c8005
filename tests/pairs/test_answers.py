"""Where solutions state their answers: each case with the answer that a careful reader finds."""

import time

import pytest

from prefkit.pairs.grading.find.answers import MAX_TEXT, final_answer, find
from prefkit.pairs.grading.find.spans import spans_of

MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"


@pytest.mark.parametrize(
    ("text", "how", "answer"),
    [
        # marks of the last line
        ("a\n#### 72", "auto", "72"),
        ("#### Final Answer\n\n\\boxed{7}", "auto", "7"),
        ("#### 7. Result\nSo it is \\boxed{12}.", "auto", "12"),
        ("It is 5.\n\n### Step 3", "auto", None),
        ("#### 7\n\n#### Checked", "hash", "Checked"),
        ("#### 7\n\n#### Final Answer", "hash", "7"),
        ("<answer>5</answer>, rather <answer> $x+1$ </answer> <answer>", "auto", "x+1"),
        ("<answer>\nWe add 3 and 4.\nThe answer is 7.\n</answer>", "auto", "7"),
        ("5 <answer> </answer>", "auto", None),
        ("9 * 2 = $<<9*2=18>>18\nA: 18", "auto", "18"),
        ("**Answer:** 5", "auto", "5"),
        ("**Final Answer**\n\n\\[ 5 \\]", "auto", "5"),
        ("## Answer\n5 cm\n", "auto", "5 cm"),
        ("A = 5 and B = 7", "auto", "7"),  # a name, no mark
        # boxes
        ("so \\boxed{\\frac{1}{2}} it is 7", "auto", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{\\{1, 2\\}}", "boxed", "\\{1, 2\\}"),
        ("\\boxed{5} and \\boxed{6", "auto", None),
        ("\\boxed{5}, that is \\boxed{}", "auto", None),
        ("\\boxed{\\boxed{5}}", "auto", "5"),
        ("\\boxed{1} and \\boxed{2}", "auto", "1, 2"),
        ("$\\boxed{1}$, $\\boxed{2}$ or $\\boxed{3}$.", "auto", "1, 2, 3"),
        ("\\boxed{k = 45} \\quad \\text{and} \\quad \\boxed{n = 2}", "auto", "k = 45, n = 2"),
        ("It is \\boxed{1}. Wait, and rather \\boxed{2}", "auto", "2"),
        ("It is \\boxed{2}.\n\n**Final Answer**\n\\boxed{2}", "auto", "2"),
        ("\\boxed 7", "auto", "7"),
        ("\\\\boxed{\\\\frac{1}{2}}", "auto", "\\frac{1}{2}"),  # escaped twice
        ("\\boxed{20} percent", "auto", "20 percent"),
        ("\\boxed{5} So in all 7. Final Answer: The final answer is $12$.", "auto", "12"),
        ("\\boxed{}", "boxed", None),
        ("no box 5", "boxed", None),
        # sentences
        ("The answer is 18 dollars a day.", "auto", "18 dollars"),
        ("The answer is $\\frac{1}{2}$.", "auto", "\\frac{1}{2}"),
        ("The final answer is $(1,4)$. I hope it is correct.", "auto", "(1,4)"),
        ("Final Answer: The volume of $ABCD$ is 120. I hope it is correct.", "auto", "120"),
        ("The answer is therefore: $\\frac{3}{4}$ of the cake", "auto", "\\frac{3}{4}"),
        ("The answer is $5$ cm, the width of 3 boxes.", "auto", "5 cm"),
        ("The answer is 7 because 3+4=7 and 8 is too large.", "auto", "7"),
        ("The answer is 17.\n\nThe answer is 18.", "auto", "18"),
        ("The answer is 1 hour 30 minutes.", "auto", "1 hour 30 minutes"),
        ("The answer is 5 million people.", "auto", "5 million"),
        ("The answer is 1.5 x 10^6.", "auto", "1.5 x 10^6"),
        ("The answer is x = 5 or x = 7.", "auto", "x = 5 or x = 7"),
        ("48 at 2 points/answer = 48 points. Hence 64.", "auto", "64"),
        ("The answer is 18.\n\nAsk if you need 2 more examples.", "auto", "18"),
        ("Answer: \\frac{3}{4}", "auto", "\\frac{3}{4}"),
        ("The correct option is (C).", "auto", "(C)"),
        # formulas
        ("So $\\dfrac{1}{3}$ of it is left.", "auto", "\\dfrac{1}{3}"),
        ("The domain is $[0,1)$.", "auto", "[0,1)"),
        ("Hence $x \\geq 5$.", "auto", "x \\geq 5"),
        (f"Hence ${MATRIX}$.", "auto", MATRIX),
        ("So\n\\[\nx = \\frac{1}{2}.\n\\]", "auto", "x = \\frac{1}{2}"),
        ("$$x=5$$", "auto", "x=5"),
        ("Hence \\(x = 5\\).", "auto", "x = 5"),
        ("It is $x=3$ or $x=-3$.", "auto", "x=3, x=-3"),
        ("[asy]\nlabel($7$);\n[/asy] So $3$ is it. [asy] A = 5; [/asy]", "auto", "3"),
        ("It costs $5 and $6, so $11 in total.", "auto", "$11"),
        ("It costs $5, so $x=11$ in total.", "auto", "x=11"),
        ("\\frac{10}{9}", "auto", "\\frac{10}{9}"),
        # what comes last
        ("47+8=55\n55-9=46\n", "auto", "46"),
        ("He pays 9 * 2 = $<<9*2=18>>18 every day", "auto", "$18"),
        ("There are 5 apples and 7 pears.", "auto", "7"),
        ("With $d = \\frac{90}{n}$ there are 12 of them.", "auto", "12"),
        ("It is 10, that is 1,000.99m² of land", "auto", "1,000.99"),
        ("It is 5-3.", "last_number", "3"),
        ("nothing", "auto", None),
        ("", "auto", None),
        ("x = <5> or <6>", "regex:<(\\d)>", "6"),
        ("none", "regex:<(\\d)>", None),
    ],
)
def test_answers_are_found(text: str, how: str, answer: str | None) -> None:
    assert final_answer(text, how) == answer


def test_other_readings_are_kept() -> None:
    assert find("He has 18 dollars in 7 days.").others == ("18",)
    assert find("The maximum is $12$ at $x=3$.").others == ("12",)
    assert find("\\boxed{1}, \\boxed{2}").others == ("2",)
    assert find("\\boxed{5}. The final answer is $6$.").others == ("5",)
    assert find("\\boxed{5}. So the answer is 6.").rivals == ("6",)
    assert find("\\boxed{5}\n#### 6").rivals == ("5",)
    assert find("The answer is 5. No, it is 7 in $x$.").rivals == ("7", "x")
    assert find("The answer is 5. Wait, 2+3=5, so it is 5.").rivals == ()
    assert find("The answer is 17 or so.\n\nIt is 18.").others == ("18",)
    assert find("It is 3.\nThe answer is 17.").others == ()


def test_of_a_long_text_the_end_is_read() -> None:
    assert final_answer("#### 5\n" + "so " * MAX_TEXT) is None
    assert final_answer("so " * MAX_TEXT + "#### 5") == "5"


def test_formulas_are_paired_from_the_end() -> None:
    text = "$18 and $a$, \\(b\\) or $$c\n$$ and \\[d\\] \\$5\\$ $e$ for $7"
    assert [span.inner for span in spans_of(text)] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    "piece",
    ["<answer>", "<answer>5</answer>", "#### 7\n", "The answer is 5. No, ", "5 feet 3 inches ",
     "$x", "$$x", "\\(", "\\[", "[asy]", "the answer is ", "\\boxed{1} and ", "$x$ and ",
     "\\frac{1}", "1 2 3 ", "1 000 ", "####", "A: \n", "*", "\n", "x = ", "final answer is $1$ "],
)  # fmt: skip
def test_a_megabyte_costs_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    find(text)
    find("The answer is " + text)
    assert time.process_time() - start < 2.0


def test_thousands_of_boxes_cost_no_time() -> None:
    text = "".join(f"\\boxed{{{n}}}, " for n in range(8000))
    start = time.process_time()
    found = find(text)
    assert time.process_time() - start < 0.5
    assert str(found.answer).endswith("7998, 7999")
    assert found.doubt == "part"  # there are more than `MAX_BOXES`
