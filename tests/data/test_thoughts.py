"""What a model says and what it thinks, however it marks its thoughts."""

import pytest

from prefkit.data.text.thoughts import is_thinking, opening_tag, spoken

CHANNELS = "<|channel|>analysis<|message|>5?<|end|><|start|>assistant<|channel|>final<|message|>7"


@pytest.mark.parametrize(
    ("text", "said", "is_open"),
    [
        ("a<think>b<think>c</think>d", "ad", False),
        ("a</Think>b<thinking>c</thinking>d", "bd", False),
        ("a<think>b", "a", True),
        ("1 < 2", "1 < 2", False),
        ("b</think>", "", False),
        ("<thought>b</thought>a <reasoning>c</reasoning>d", "a d", False),
        ("<seed:think>b</seed:think>a", "a", False),
        ("[THINK]b[/THINK]a", "a", False),
        ("◁think▷b◁/think▷a", "a", False),
        ("<|begin_of_thought|>b<|end_of_thought|>a", "a", False),
        ("<|START_THINKING|>b<|END_THINKING|>a", "a", False),
        ("<|channel>thought\nb<channel|>a", "a", False),
        (CHANNELS, "7", False),
        (CHANNELS + "<|return|>", "7", False),
        (CHANNELS[: CHANNELS.index("<|start|>")], "", True),
        ("5?<|end|><|start|>assistant<|channel|>final<|message|>7", "7", False),
        ("<|channel|>commentary to=a<|message|>b<|call|><|channel|>final<|message|>7", "7", False),
        ("analysisWe need 5?assistantfinal7", "7", False),
        ("analysis of the question: 5", "analysis of the question: 5", False),
    ],
)
def test_what_is_said(text: str, said: str, is_open: bool) -> None:
    assert (spoken(text), is_thinking(text)) == (said, is_open)


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("Write <think> first.", ""),
        ("[THINK]", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("<|start|>assistant", ""),
        ("", ""),
    ],
)
def test_a_prompt_may_open_a_thought(prompt: str, tag: str) -> None:
    assert opening_tag(prompt).strip() == tag
