"""A response as the text that follows its context, and the token that ends it.

    a string        is what the model writes after the context, character by character
    messages        are written by the chat template: thoughts, channels and calls in its own form,
                    tool results (masked) between two turns of the assistant's
    one message     whose turn the row has begun, or which the template cannot write after the
                    generation prompt that sampling would show, is its content, as a string is

In every case the text follows exactly what sampling would show. A thought is opened once: what the
generation prompt has opened is not opened again, and a whole solution closes it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefkit.data.pair import Front, Message, Rendered, Side
from prefkit.data.text.render import Renderer
from prefkit.data.text.template import common_start, extra_fields
from prefkit.data.text.thoughts import closes_nothing, marks_after, repeated_opening, state_of
from prefkit.data.text.turns import SWITCHES, Written, by_template, words_of
from prefkit.errors import RowError


def write_response(
    front: Front, name: str, side: Side, rendered: Rendered, renderer: Renderer
) -> Written:
    """The response as the text that follows its context.

    Args:
        front: the row's context.
        name: the response's field, such as "chosen".
        side: the response as read from the row.
        rendered: the context as text.
        renderer: knows the template.

    Raises:
        RowError: the template drops a field of a message, or writes the turn otherwise than it
            begins one; a thought would be opened twice, or an answer stand in an open one; there is
            no token to end the response with.
    """
    if side.absent:
        return Written(side, None)
    if side.messages and not rendered.is_begun:
        written = by_template(front, name, side, rendered, renderer)
        if written is not None:
            return written
    side = _as_text(front, name, side, rendered, renderer)
    end = renderer.end_id(front, rendered.is_chat) if front.append_eos else None
    return Written(side, end)


def _as_text(front: Front, name: str, side: Side, rendered: Rendered, renderer: Renderer) -> Side:
    """A string, or the content of one message, right after the front."""
    text = side.text
    if side.messages:
        text = _lone_content(front, name, side.messages)
    if name == "chosen":  # a rejected side may well go round in circles
        renderer.starts.told_again(front, rendered, text)
    if not rendered.is_chat:
        if repeated_opening(rendered.prompt + rendered.prefix, text):
            problem = "opens the thought a second time, after the prompt has opened it"
            remedy = "Take out one of the two marks."
            raise RowError(front.source, front.row, name, problem, remedy)
        return replace(side, text=text, messages=())
    if not side.messages and not rendered.is_begun:
        renderer.starts.compare(front, name, rendered, text)
    before = rendered.opening + rendered.prefix
    repeated = repeated_opening(before, text)
    _check_thoughts(front, name, rendered, text[repeated:], renderer)
    moved = tuple(
        (max(start - repeated, 0), end - repeated, weight)
        for start, end, weight in side.spans
        if end > repeated
    )
    masked = tuple((max(a - repeated, 0), b - repeated) for a, b in side.masked if b > repeated)
    return replace(side, text=text[repeated:], spans=moved, masked=masked, messages=())


def _lone_content(front: Front, name: str, messages: Sequence[Message]) -> str:
    """The content of a response that is one plain message."""
    (message, *more), begins = messages, "continues a turn that the row has begun"
    if more:
        problem = f"holds {len(messages)} messages, but {begins}"
        raise RowError(front.source, front.row, name, problem, "End the prompt with another role.")
    if fields := extra_fields(message):
        problem = f"holds '{fields[0]}', but {begins}"
        remedy = "Write all of it into the content."
        raise RowError(front.source, front.row, name, problem, remedy)
    if not isinstance(message.get("content"), str):
        problem = "holds a list of parts, but follows a turn or a thought that is begun already"
        raise RowError(front.source, front.row, name, problem, "Write the content as one string.")
    return message["content"]


def _check_thoughts(
    front: Front, name: str, rendered: Rendered, text: str, renderer: Renderer
) -> None:
    """One opening mark, and no whole solution that ends within the thought it was given."""
    before = rendered.opening + rendered.prefix
    begun = state_of(before)
    given = state_of(rendered.opening)  # of the generation prompt and a turn begun in the prompt
    marks = marks_after(before, text)
    opens = bool(marks) and marks[0].opens
    shown = rendered.opening.strip()[-40:]
    if opens and begun == "open":
        problem = f"opens the thought a second time, after {shown!r}"
        remedy = "Take out the mark that opens it."
    elif opens and given == begun == "closed":
        problem = f"opens a thought after {shown!r}, which has closed one"
        remedy = _switch(front, rendered, renderer, "none", "open") or "Take the thought out."
    elif closes_nothing(before, text):
        problem = "closes a thought that is not open"
        remedy = "Put the mark that opens it before the thought, or take the closing mark out."
    elif front.append_eos and begun == "open" and state_of(before + text) != "closed":
        problem = f"is an answer inside the thought that {shown!r} opens, and never closes it"
        remedy = _switch(front, rendered, renderer, "none", "closed") or (
            "Give the response its thought, closed by its mark, or set chat_template to one that "
            "opens none."
        )
    elif front.append_eos and opens and state_of(before + text) == "open":
        problem = "ends in a thought that it opens, where no model would be shown its end"
        remedy = "Close the thought, say append_eos: false in the row, or leave it out."
    else:
        return
    raise RowError(front.source, front.row, name, problem, remedy)


def _switch(front: Front, rendered: Rendered, renderer: Renderer, *states: str) -> str:
    """The remedy of a variable with which the generation prompt leaves a thought in one of the
    states; "" where no known one does."""
    set_already = {**renderer.options.template_variables, **front.variables}
    for variables in SWITCHES:
        if variables.items() <= set_already.items():
            continue
        how: dict[str, Any] = {"variables": {**front.variables, **variables}}
        base = renderer.write(front, rendered.messages, **how)
        begins = renderer.write(front, rendered.messages, begin=True, **how)
        if state_of(begins[common_start(base, begins) :]) in states:
            return f"Say chat_template_kwargs: {words_of(variables)}, if that is meant."
    return ""
