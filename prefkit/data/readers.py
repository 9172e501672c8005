"""One reader a format: what each published row means, as Pairs.

A reader yields the row's pairs and raises RowError where the row makes no sense. Most rows are one
pair; a row of the TDPO layout may be many, of which a bad one does not spoil the others.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefkit.data.blocks import Content, join_front, render_content
from prefkit.data.files import is_conversational
from prefkit.data.pair import Message, Pair, Side
from prefkit.data.row import NEEDED, Row
from prefkit.data.weights import read_scored_side, read_spans, read_token_weights
from prefkit.errors import RowError

if TYPE_CHECKING:
    from prefkit.data.formats import ReadOptions


def read_strings(row: Row, options: "ReadOptions") -> Iterator[Pair]:
    """prefkit's own rows and TRL's standard ones: the responses are strings."""
    if is_conversational(row.get("chosen")) or is_conversational(row.get("rejected")):
        yield from read_messages(row, options)
        return
    _refuse_unsupported(row)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    prompt, chosen, rejected = _split_prompt(row, chosen, rejected)
    # A prefix, even an empty one, says that the row is about what follows it: one step.
    is_step = "prefix" in row and options.level == "step"
    if "prefix" in row and options.level == "auto" and row.get("append_eos") in (None, "auto"):
        raise _open_end(row, "prefix")
    yield _pair(
        row,
        prompt=prompt,
        prefix=row.text("prefix", empty=True) if "prefix" in row else "",
        chosen=_weighted_side(row, "chosen", chosen),
        rejected=_weighted_side(row, "rejected", rejected),
        append_eos=row.eos(default=not is_step),
    )


def read_step_dpo(row: Row, options: "ReadOptions") -> Iterator[Pair]:
    """Math-Step-DPO-10K, and own rows with full_chosen: single steps, or the two solutions after
    the shared front."""
    if is_conversational(row.get("chosen")):
        raise row.error("chosen", "holds messages", "Write the step as a string.")
    _refuse_unsupported(row)
    front = "prefix" if "prefix" in row else "initial_reason_steps"
    prefix = row.text(front, empty=True)
    # A row that says itself whether `chosen` ends the solution needs no full_chosen.
    said = isinstance(row.get("append_eos"), bool) and "full_chosen" not in row
    whole = options.level != "step" and not said
    if whole and options.level == "auto" and "full_chosen" not in row:
        raise _open_end(row, front)
    names = ("full_chosen", "full_rejected") if whole else ("chosen", "rejected")
    remedy = 'Give full_chosen and full_rejected, or read the rows at level "step".'
    texts = [row.text(name, remedy=remedy) if whole else row.text(name) for name in names]
    if whole and any(prefix.strip() and text.startswith(prefix) for text in texts):
        problem = f"repeats {front}"
        raise row.error("full_chosen", problem, "Let it continue after them, as published.")
    yield _pair(
        row,
        prompt=read_prompt(row),
        prefix=prefix,
        chosen=_weighted_side(row, "chosen", texts[0], plain=whole),
        rejected=_weighted_side(row, "rejected", texts[1], plain=whole),
        append_eos=row.eos(default=options.level != "step"),
    )


def _open_end(row: Row, front: str) -> RowError:
    return row.error(
        front,
        "leaves open where chosen and rejected end: after one step, or with the solution",
        "Say level: step (no end-of-sequence token) or level: solution, give full_chosen and "
        "full_rejected, or put append_eos into the row.",
    )


def read_messages(row: Row, options: "ReadOptions") -> Iterator[Pair]:
    """TRL's conversational rows and SCDPO's role lists: the last message is the response."""
    _refuse_unsupported(row)
    for field in ("chosen_spans", "rejected_spans"):
        if field in row:
            raise row.error(field, "needs responses that are strings", "Write chosen as text.")
    given = read_prompt(row) if is_conversational(row.get("prompt")) else ()
    sides = [_split_side(row, name, options) for name in ("chosen", "rejected")]
    (front_w, said_w, chosen), (front_l, said_l, rejected) = sides
    if front_w != front_l:
        problem = "has another front (messages before the response) than 'chosen'"
        raise row.error("rejected", problem, "Both sides must share all but their last message.")
    if said_w.text != said_l.text:
        problem = "has another assistant_correct front than 'chosen'"
        raise row.error("rejected", problem, "Write the same correct steps on both sides.")
    repeated = bool(given) and front_w[: len(given)] == given
    prompt = front_w if repeated else (*given, *front_w)
    if not prompt:
        raise row.error("prompt", "is missing", "Give it, or begin both sides with the question.")
    yield _pair(
        row,
        prompt=prompt,
        prefix=join_front(said_w, Content(chosen.text), options.block_style),
        chosen=chosen,
        rejected=rejected,
        append_eos=row.eos(default=True),
    )


def read_cdpo(row: Row, options: "ReadOptions") -> Iterator[Pair]:
    """A scored file: weight 1 on the chosen side, 1 − s_t on the rejected side."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    yield _pair(
        row,
        prompt=read_prompt(row),
        prefix="",
        chosen=Side(text=chosen),
        rejected=Side(text=rejected, token_weights=read_scored_side(row, "neg", rejected)),
        append_eos=row.eos(default=True),
    )


def read_tdpo(row: Row, options: "ReadOptions") -> Iterator[Pair | RowError]:
    """{prompt, responses, pairs}: each (i, j) is a pair, response i preferred. One row, n pairs."""
    prompt, responses, pairs = read_prompt(row), row.require("responses"), row.require("pairs")
    if not isinstance(responses, list) or not responses:
        raise row.error("responses", "is empty or no list", "Give the responses as strings.")
    if not isinstance(pairs, list) or not pairs:
        raise row.error("pairs", "is empty or no list", "Give [preferred, other] index pairs.")
    for place, couple in enumerate(pairs):
        try:
            chosen, rejected = _couple(row, couple, len(responses), f"pairs[{place}]")
            yield _pair(
                row,
                prompt=prompt,
                prefix="",
                chosen=Side(text=row.as_text(responses[chosen], f"responses[{chosen}]")),
                rejected=Side(text=row.as_text(responses[rejected], f"responses[{rejected}]")),
                append_eos=row.eos(default=True),
            )
        except RowError as error:  # the row's other pairs may still be good
            yield error


def _pair(row: Row, *, chosen: Side, rejected: Side, **fields: Any) -> Pair:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side.text.strip():
            raise row.error(name, "is empty", "Fill it in or remove the row.")
    if chosen.text == rejected.text:
        raise row.error("rejected", "is the same text as 'chosen'", "Remove the row.")
    return Pair(chosen=chosen, rejected=rejected, source=row.source, row=row.index, **fields)


def read_prompt(row: Row, remedy: str = NEEDED) -> str | tuple[Message, ...]:
    """The row's prompt: text, or messages with their contents as text.

    Raises:
        RowError: it is missing, empty or neither; `remedy` says what rows need.
    """
    if not is_conversational(row.get("prompt")):
        return row.text("prompt", remedy=remedy)
    return tuple(_flat_message(row, m, "prompt", "plain") for m in row.messages("prompt"))


def _flat_message(row: Row, message: Message, field: str, style: str) -> Message:
    content = render_content(row, message.get("content"), f"{field}.{message['role']}", style)
    return {**{k: v for k, v in message.items() if v is not None}, "content": content.text}


def _split_prompt(
    row: Row, chosen: str, rejected: str
) -> tuple[str | tuple[Message, ...], str, str]:
    """The prompt, given or implicit: then it is the responses' common beginning, as in TRL."""
    if "prompt" in row:
        return read_prompt(row), chosen, rejected
    for field in ("chosen_spans", "rejected_spans", "prefix"):
        if field in row:
            raise row.error("prompt", f"is missing in a row with '{field}'", "Give the prompt.")
    if chosen == rejected:
        raise row.error("rejected", "is the same text as 'chosen'", "Remove the row.")
    length = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    if length and chosen[length - 1] == " ":
        length -= 1  # the space belongs to the word after it
    if not chosen[:length].strip():
        problem = "is missing, and the two responses share no beginning that could be it"
        raise row.error("prompt", problem, "Give the prompt.")
    return chosen[:length], chosen[length:], rejected[length:]


def _weighted_side(row: Row, name: str, text: str, plain: bool = False) -> Side:
    """A side with the row's weights; `plain` where the text is not the one they were made for."""
    spans_field, weights_field = f"{name}_spans", f"{name}_weights"
    if spans_field in row and weights_field in row:
        problem = f"is given together with '{weights_field}'"
        raise row.error(spans_field, problem, "Give weights by span or by token, not both.")
    if plain:
        for field in (spans_field, weights_field):
            if field in row:
                problem = "speaks of the single step, not of the whole solution"
                raise row.error(field, problem, 'Read the rows at level "step" (--level step).')
    return Side(
        text=text,
        spans=read_spans(row, spans_field, text),
        token_weights=read_token_weights(row, weights_field),
    )


def _split_side(
    row: Row, name: str, options: "ReadOptions"
) -> tuple[tuple[Message, ...], Content, Side]:
    """One side's messages → (shared messages, correct front, response)."""
    messages = row.messages(name)
    if messages[-1]["role"] != "assistant":
        problem = f"ends with a message of role '{messages[-1]['role']}'"
        raise row.error(name, problem, "End it with the assistant's response.")
    style = options.block_style
    front, said = messages[:-1], Content("")
    if front and front[-1]["role"] == "assistant_correct":
        said = render_content(row, front[-1].get("content"), f"{name}.assistant_correct", style)
        front = front[:-1]
    response = render_content(row, messages[-1].get("content"), f"{name}.assistant", style)
    side = Side(
        text=response.text,
        masked=response.tool_output if options.mask_tool_output else (),
        token_weights=read_token_weights(row, f"{name}_weights"),
    )
    return tuple(_flat_message(row, m, name, style) for m in front), said, side


def _couple(row: Row, couple: Any, count: int, field: str) -> tuple[int, int]:
    remedy = f"Write two different indices below {count}, the preferred response first."
    if not isinstance(couple, list | tuple) or len(couple) != 2:
        raise row.error(field, f"is {couple!r}", remedy)
    for index in couple:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise row.error(field, f"has the index {index!r} of {count} responses", remedy)
    if couple[0] == couple[1]:
        raise row.error(field, "pairs a response with itself", remedy)
    return couple[0], couple[1]


def _refuse_unsupported(row: Row) -> None:
    for field in ("images", "image", "videos", "audio"):
        if row.get(field):
            raise row.error(field, "is no text", "prefkit trains text models: remove the field.")
    if row.get("tools"):
        problem = "holds tool schemas, which only a chat template can write out"
        raise row.error("tools", problem, "Write them into the prompt and remove the field.")
