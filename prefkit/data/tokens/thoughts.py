r"""What a model says, without what it thinks.

Reasoning models think before they speak, and mark the thought: by a pair of tags
(`<think>…</think>` and its kin), or by channels (gpt-oss: `<|channel|>analysis<|message|>…<|end|>`,
the answer in `<|channel|>final<|message|>`). An answer, a verdict, a step that stands in a thought
is not said yet.
"""

import re

# Patterns of the marks that open and close a thought: Qwen, DeepSeek, GLM, Nemotron, Seed, …;
# Magistral; Kimi; Sky-T1; Command; Gemma 4. Letters of either case.
_NAMES = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reason|reasoning)"
OPEN = (
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel>thought"
)
CLOSE = rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<channel\|>"
ANALYSIS = r"<\|channel\|>analysis<\|message\|>"  # gpt-oss: a channel, which <|end|> ends
_TAG = re.compile(rf"(?P<open>{OPEN})|(?P<close>{CLOSE})", re.I)
_OPENED = re.compile(rf"(?:{OPEN}|{ANALYSIS})\s*\Z", re.I)
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)[^<\n]*<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_STRIPPED = re.compile(r"\s*analysis.*assistant\s*final", re.DOTALL)  # channels, tokens left out


def spoken(text: str) -> str:
    """The text without its thoughts.

    Args:
        text: what a model wrote. A thought that is not closed runs to the end; one whose opening
            tag stands in the prompt begins with the text.

    Returns:
        What is left, "" where nothing is. With channels: what stands in the final one.
    """
    return parted(text)[0]


def is_thinking(text: str) -> bool:
    """Whether a model's text ends inside a thought.

    With channels: whether it ends in another channel than the final one.
    """
    return parted(text)[1]


def opening_tag(prompt: str) -> str:
    """The tag that opens a thought at the very end of a prompt, "" where it ends otherwise.

    What a model writes after such a prompt begins in the thought.
    """
    match = _OPENED.search(prompt[-200:])
    return match[0] if match else ""


def parted(text: str) -> tuple[str, bool]:
    """(what `spoken` gives, what `is_thinking` gives), from one pass over the text."""
    if "<|channel|>" in text and (channels := list(_CHANNEL.finditer(text))):
        return _final(text, channels)
    if match := _STRIPPED.match(text):
        return text[match.end() :], False
    said: list[str] = []
    at, is_inside = 0, False
    for tag in _TAG.finditer(text):
        if tag["close"]:
            if not is_inside:
                said.clear()  # the thought was opened in the prompt
            at, is_inside = tag.end(), False
        elif not is_inside:
            said.append(text[at : tag.start()])
            is_inside = True
    return "".join(said if is_inside else [*said, text[at:]]), is_inside


def _final(text: str, channels: list[re.Match[str]]) -> tuple[str, bool]:
    said = []
    for channel in channels:
        if channel["name"] == "final":
            end = _CHANNEL_END.search(text, channel.end())
            said.append(text[channel.end() : end.start() if end else len(text)])
    return "".join(said), channels[-1]["name"] != "final"
