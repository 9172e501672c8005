"""A response that is chat messages, as the chat template writes it.

The template is trusted with the form of thoughts, channels and calls, and with nothing else: each
turn of the assistant's has to be written just as the template begins one, or it would be text that
sampling never shows.
"""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from prefkit.data.chat import PROBE, common_end, common_start, extra_fields, texts_of
from prefkit.data.marks import marks_of
from prefkit.data.pair import Front, Message, Side
from prefkit.data.render import Rendered, Renderer
from prefkit.errors import RowError

# Variables by which templates switch thoughts on and off.
SWITCHES = (
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": False},
    {"thinking": True},
)


@dataclass(frozen=True)
class Written:
    """A response as text.

    Attributes:
        side: text, spans and masked characters; no messages are left.
        end: the id that ends it, or None.
        begins: characters of the text at which sampling would go on, after a tool's result.
    """

    side: Side
    end: int | None
    begins: tuple[int, ...] = ()


def by_template(
    front: Front, name: str, side: Side, rendered: Rendered, renderer: Renderer
) -> Written | None:
    """What the template writes; None where the one message's content says more than that.

    The template has to write the turn as it begins one, and all of it. Where it does not (R1's
    writes no thoughts, although it opens one), what the model would write is the content itself.
    """
    messages, answer = list(rendered.messages), list(side.messages)
    whole = renderer.write(front, [*messages, *answer], name)
    begins = rendered.prompt
    lone = len(answer) == 1 and not extra_fields(answer[0])
    if lone and not _is_faithful(answer[0], whole, begins):
        if isinstance(answer[0].get("content"), str):
            return None
        renderer.kept.check_content(front, answer[0], name, whole[common_start(whole, begins) :])
    for place in range(len(messages), len(messages) + len(answer)):
        renderer.kept.check_message(front, [*messages, *answer], place, name, whole)
    if not whole.startswith(begins):
        raise _other_beginning(front, name, begins, whole, messages, answer, renderer)
    turns = _turns(front, name, messages, answer, whole, renderer)
    stop, end = _end(front, answer[-1], whole, turns, renderer)
    gaps = tuple(
        (ended - len(begins), begun - len(begins)) for (_, ended), (begun, _) in pairwise(turns)
    )
    masked = tuple(
        gap
        for gap, roles in zip(gaps, _roles_between(answer), strict=True)
        if side.masks_tools or roles != {"tool"}
    )
    side = replace(side, text=whole[len(begins) : stop], masked=masked, messages=())
    return Written(side, end, tuple(begun for _, begun in gaps))


def _roles_between(answer: list[Message]) -> list[set[str]]:
    """Who speaks between each two messages of the assistant's."""
    places = [place for place, message in enumerate(answer) if message["role"] == "assistant"]
    return [{message["role"] for message in answer[a + 1 : b]} for a, b in pairwise(places)]


def _is_faithful(message: Message, whole: str, begins: str) -> bool:
    """Whether the template wrote a plain message as sampling would begin it, whole, its thought
    opened once."""
    if not whole.startswith(begins):
        return False
    content, text = message.get("content"), whole[len(begins) :]
    openings = sum(mark.opens for mark in marks_of(text))
    own = sum(mark.opens for mark in marks_of(content)) if isinstance(content, str) else 0
    return openings <= max(own, 1) and all(piece in text for piece in texts_of(content))


def _turns(
    front: Front,
    name: str,
    messages: list[Message],
    answer: list[Message],
    whole: str,
    renderer: Renderer,
) -> list[tuple[int, int]]:
    """Where in `whole` each of the assistant's turns begins and ends."""
    turns = []
    for place, message in enumerate(answer):
        if message["role"] != "assistant":
            continue
        before = renderer.write(front, [*messages, *answer[:place]], name, begin=True)
        if not whole.startswith(before):
            raise _other_beginning(front, name, before, whole, messages, answer, renderer)
        end = len(whole)
        if place + 1 < len(answer):
            end = _turn_end(front, messages, answer, place, whole, renderer)
        turns.append((len(before), end))
    return turns


def _turn_end(
    front: Front,
    messages: list[Message],
    answer: list[Message],
    place: int,
    whole: str,
    renderer: Renderer,
) -> int:
    """Where a turn ends that others follow: after what the template also writes where it is last.

    What follows the message's own words is what does not change when these do.
    """
    other = _changed(answer[place])

    def after(messages_before: list[Message], rest: list[Message], text: str) -> str:
        changed = renderer.write(front, [*messages_before, other, *rest])
        return text[len(text) - common_end(text, changed) :]

    before = [*messages, *answer[:place]]
    lone = renderer.write(front, [*before, answer[place]])
    here, last = after(before, answer[place + 1 :], whole), after(before, [], lone)
    tail = here[: common_start(here, last)]
    stripped, special = tail.rstrip(), renderer.template.special
    if any(stripped.endswith(token) for token in special):
        tail = stripped
    elif not any(token in tail for token in special):
        # GLM's turns have no end of their own: the mark of the next one is what ends them.
        rest = here[len(tail) :]
        tail += next((token for token in special if rest.startswith(token)), "")
    return len(whole) - len(here) + len(tail)


def _changed(message: Message) -> Message:
    """The message with other words at its end; a call's name stays, as its result repeats it."""
    if not message.get("tool_calls"):
        return {**message, "content": f"{message.get('content') or ''} {PROBE}"}
    calls = [dict(call) for call in message["tool_calls"]]
    function = calls[-1].get("function", calls[-1])
    is_text = isinstance(function.get("arguments"), str)
    probe: Any = '{"p": "' + PROBE + '"}' if is_text else {"p": PROBE}
    changed = {**function, "arguments": probe}
    calls[-1] = {**calls[-1], "function": changed} if "function" in calls[-1] else changed
    return {**message, "tool_calls": calls}


def _end(
    front: Front, last: Message, whole: str, turns: list[tuple[int, int]], renderer: Renderer
) -> tuple[int, int | None]:
    """Where the last turn's text stops, and the id that ends it (None where nothing shall)."""
    template = renderer.template
    tail, stripped = template.tail(), whole.rstrip()
    found = next((token for token in template.special if stripped.endswith(token)), None)
    if not last.get("tool_calls") and tail and whole.endswith(tail):
        stop, end = len(whole) - len(tail), template.end_of_turn()
    elif found is not None and len(stripped) - len(found) > turns[-1][0]:
        stop, end = len(stripped) - len(found), template.special[found]
    else:
        stop, end = len(whole), template.end_of_turn()
    if not front.append_eos:
        return stop, None
    return stop, end if end is not None else renderer.end_id(front, is_chat=True)


def _other_beginning(
    front: Front,
    name: str,
    begins: str,
    whole: str,
    messages: list[Message],
    answer: list[Message],
    renderer: Renderer,
) -> RowError:
    """The template writes a turn otherwise than it begins one: what to change, tried out."""
    at = common_start(whole, begins)
    problem = "is written by the chat template otherwise than sampling would begin it: "
    problem += f"{whole[max(at - 20, 0) : at + 30]!r} instead of {begins[max(at - 20, 0) :]!r}"
    remedy = "Write it as one message with all of it in the content, or set chat_template."
    for switch in SWITCHES:
        if _agrees(front, messages, answer, switch, renderer):
            remedy = f"Say chat_template_kwargs: {words_of(switch)}, with which the two agree."
            break
    return RowError(front.source, front.row, name, problem, remedy)


def _agrees(
    front: Front,
    messages: list[Message],
    answer: list[Message],
    switch: dict[str, Any],
    renderer: Renderer,
) -> bool:
    """Whether every turn of the response is written as it is begun, with another variable."""
    how: dict[str, Any] = {"variables": {**front.variables, **switch}}
    try:
        whole = renderer.write(front, [*messages, *answer], **how)
        return all(
            whole.startswith(renderer.write(front, [*messages, *answer[:i]], begin=True, **how))
            for i, message in enumerate(answer)
            if message["role"] == "assistant"
        )
    except RowError:
        return False


def words_of(variables: dict[str, Any]) -> str:
    """Variables as a config writes them."""
    return json.dumps(variables)
