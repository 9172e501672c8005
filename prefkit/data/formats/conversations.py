"""Rows whose responses are chat messages: TRL's conversational rows, and SCDPO's role lists.

The context is the prompt, or without one the messages that both fields begin with. The rest of each
field is its response: one message of the assistant's, or several with tool results between them.
"""

from collections.abc import Iterator

from prefkit.data.formats.fields.blocks import Content, join_front, render_content
from prefkit.data.formats.fields.messages import has_blocks, plain_message, read_messages_field
from prefkit.data.formats.fields.prompt import read_prompt, refuse_media
from prefkit.data.formats.fields.responses import RowOptions, make_pair, open_end
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.fields.weights import read_token_weights
from prefkit.data.pair import Message, Pair, Side
from prefkit.data.text.thoughts import texts_of

Messages = tuple[Message, ...]
_CORRECT = "assistant_correct"  # SCDPO's role of the correct steps that both sides share


def read_conversation(row: Row, options: RowOptions) -> Iterator[Pair]:
    """A pair of conversations.

    Raises:
        RowError: a field that does not end with the assistant, or two that begin differently.
    """
    refuse_media(row)
    for field in ("chosen_spans", "rejected_spans"):
        if field in row:
            raise row.error(field, "needs responses that are strings", "Write chosen as text.")
    sides = [read_messages_field(row, name) for name in ("chosen", "rejected")]
    for name, messages in zip(("chosen", "rejected"), sides, strict=True):
        if messages[-1]["role"] != "assistant":
            problem = f"ends with a message of role '{messages[-1]['role']}'"
            raise row.error(name, problem, "End it with the assistant's response.")
    if any(message["role"] == _CORRECT for messages in sides for message in messages):
        yield _controlled_pair(row, sides, options)
        return
    given = _given(row, sides)
    plain = [
        _without(row, name, tuple(_plain(row, m, name, options) for m in messages), given)
        for name, messages in zip(("chosen", "rejected"), sides, strict=True)
    ]
    shared = 0 if given else _shared(*plain)  # what follows a prompt that is given is all trained
    prompt = (*given, *plain[0][:shared])
    if not prompt:
        raise row.error("prompt", "is missing", "Give it, or begin both sides with the question.")
    if shared < min(map(len, plain)) - 1 and not given and "user" in _roles(plain, shared):
        problem = "has another front (messages before the response) than 'chosen'"
        raise row.error("rejected", problem, "Both sides must answer the same messages.")
    for field in ("initial_reason_steps", "full_chosen", "full_rejected"):
        if field in row:
            raise row.error(field, "needs responses that are strings", "Write chosen as text.")
    if "prefix" in row and options.level == "auto" and row.get("append_eos") in (None, "auto"):
        raise open_end(row, "prefix")
    chosen, rejected = (
        _side(row, name, messages, messages_after[shared:], options)
        for name, messages, messages_after in zip(("chosen", "rejected"), sides, plain, strict=True)
    )
    yield make_pair(
        row,
        prompt=prompt,
        prefix=row.text("prefix", empty=True) if "prefix" in row else "",
        chosen=chosen,
        rejected=rejected,
        append_eos=row.eos(default="prefix" not in row or options.level != "step"),
    )


def _plain(row: Row, message: Message, name: str, options: RowOptions) -> Message:
    return plain_message(row, message, name, options.block_style)


def _given(row: Row, sides: list[list[Message]]) -> Messages:
    """The prompt as messages, () where the responses begin with it.

    Raises:
        RowError: a prompt of plain text that is not what the responses begin with.
    """
    if "prompt" not in row:
        return ()
    prompt = read_prompt(row)
    if not isinstance(prompt, str):
        return prompt
    if all(messages[0]["role"] in ("assistant", _CORRECT) for messages in sides):
        return ({"role": "user", "content": prompt},)
    asked = [m.get("content") for messages in sides for m in messages if m["role"] == "user"]
    if prompt not in asked:
        problem = "is not what the conversations in chosen and rejected ask"
        raise row.error("prompt", problem, "Remove it, or write the conversation into it.")
    return ()


def _without(row: Row, name: str, messages: Messages, given: Messages) -> Messages:
    """A side without the prompt, where it repeats it."""
    repeats = bool(given) and messages[: len(given)] == given
    rest = messages[len(given) :] if repeats else messages
    if not rest:
        raise row.error(name, "ends with the prompt", "End it with the assistant's response.")
    return rest


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages both sides begin with; they never end with a turn of the assistant's,
    which would then be a begun one."""
    most, shared = min(len(chosen), len(rejected)) - 1, 0
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    return shared


def _roles(sides: list[Messages], start: int) -> set[str]:
    return {message["role"] for messages in sides for message in messages[start:-1]}


def _side(row: Row, name: str, raw: list[Message], response: Messages, options: RowOptions) -> Side:
    """A response: messages for the template, or the text of typed blocks with their output."""
    weights = read_token_weights(row, f"{name}_weights")
    blocks = [message for message in raw[-len(response) :] if has_blocks(message.get("content"))]
    if blocks and len(response) > 1:
        problem = "holds several messages, and typed blocks in one of them"
        remedy = "Write all of the response as blocks of one message, or none of it."
        raise row.error(name, problem, remedy)
    if blocks:
        return _from_blocks(row, name, raw[-1], options)
    return Side(
        text="\n".join(texts_of(response[-1].get("content"))),
        messages=response,
        masks_tools=options.mask_tool_output,
        token_weights=weights,
    )


def _from_blocks(row: Row, name: str, message: Message, options: RowOptions) -> Side:
    style = options.block_style
    content = render_content(row, message.get("content"), f"{name}.assistant", style)
    return Side(
        text=content.text,
        masked=content.tool_output if options.mask_tool_output else (),
        token_weights=read_token_weights(row, f"{name}_weights"),
    )


def _controlled_pair(row: Row, sides: list[list[Message]], options: RowOptions) -> Pair:
    """SCDPO: correct steps that both sides share, then what follows them."""
    style = options.block_style
    fronts, said, responses = [], [], []
    for name, messages in zip(("chosen", "rejected"), sides, strict=True):
        front, correct = messages[:-1], Content("")
        if front and front[-1]["role"] == _CORRECT:
            correct = render_content(row, front[-1].get("content"), f"{name}.{_CORRECT}", style)
            front = front[:-1]
        fronts.append(tuple(plain_message(row, message, name, style) for message in front))
        said.append(correct)
        responses.append(_from_blocks(row, name, messages[-1], options))
    if fronts[0] != fronts[1]:
        problem = "has another front (messages before the response) than 'chosen'"
        raise row.error("rejected", problem, "Both sides must share all but their last message.")
    if said[0].text != said[1].text:
        problem = f"has another {_CORRECT} front than 'chosen'"
        raise row.error("rejected", problem, "Write the same correct steps on both sides.")
    given = _given(row, sides)
    repeated = bool(given) and fronts[0][: len(given)] == given
    prompt = fronts[0] if repeated else (*given, *fronts[0])
    if not prompt:
        raise row.error("prompt", "is missing", "Give it, or begin both sides with the question.")
    return make_pair(
        row,
        prompt=prompt,
        prefix=join_front(said[0], Content(responses[0].text), style),
        chosen=responses[0],
        rejected=responses[1],
        append_eos=row.eos(default=True),
    )
