"""One reader a format: what each published row means, as Pairs.

A reader yields the row's pairs and raises RowError where the row makes no sense. Most rows are one
pair; a row of the TDPO layout may be many, of which a bad one does not spoil the others.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefkit.data.formats.messages import plain_message, read_messages_field, says_nothing
from prefkit.data.formats.row import NEEDED, Row
from prefkit.data.formats.row_weights import read_scored_side, read_spans, read_token_weights
from prefkit.data.formats.speech import is_conversational
from prefkit.data.pair import Message, Pair, Side
from prefkit.errors import RowError

if TYPE_CHECKING:
    from prefkit.data.formats.detect import ReadOptions

Prompt = str | tuple[Message, ...]


def read_strings(row: Row, options: "ReadOptions") -> Iterator[Pair]:
    """prefkit's own rows and TRL's standard ones: the responses are strings."""
    if is_conversational(row.get("chosen")) or is_conversational(row.get("rejected")):
        from prefkit.data.formats.conversations import read_conversation

        yield from read_conversation(row, options)
        return
    refuse_media(row)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    prompt, chosen, rejected = _split_prompt(row, chosen, rejected)
    # A prefix, even an empty one, says that the row is about what follows it: one step.
    is_step = "prefix" in row and options.level == "step"
    if "prefix" in row and options.level == "auto" and row.get("append_eos") in (None, "auto"):
        raise open_end(row, "prefix")
    yield make_pair(
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
    refuse_media(row)
    if "prefix" in row and "initial_reason_steps" in row:
        raise row.error("prefix", "is given together with 'initial_reason_steps'", "Keep one.")
    front = "prefix" if "prefix" in row else "initial_reason_steps"
    prefix = row.text(front, empty=True)
    # A row that says itself whether `chosen` ends the solution needs no full_chosen.
    said = isinstance(row.get("append_eos"), bool) and "full_chosen" not in row
    whole = options.level != "step" and not said
    if whole and options.level == "auto" and "full_chosen" not in row:
        raise open_end(row, front)
    names = ("full_chosen", "full_rejected") if whole else ("chosen", "rejected")
    remedy = 'Give full_chosen and full_rejected, or read the rows at level "step".'
    texts = [row.text(name, remedy=remedy) if whole else row.text(name) for name in names]
    if whole and any(prefix.strip() and text.startswith(prefix) for text in texts):
        problem = f"repeats {front}"
        raise row.error("full_chosen", problem, "Let it continue after them, as published.")
    yield make_pair(
        row,
        prompt=read_prompt(row),
        prefix=prefix,
        chosen=_weighted_side(row, "chosen", texts[0], plain=whole),
        rejected=_weighted_side(row, "rejected", texts[1], plain=whole),
        append_eos=row.eos(default=options.level != "step"),
    )


def open_end(row: Row, front: str) -> RowError:
    """The error of a row with a front that does not say where its responses end."""
    return row.error(
        front,
        "leaves open where chosen and rejected end: after one step, or with the solution",
        "Say level: step (no end-of-sequence token) or level: solution, give full_chosen and "
        "full_rejected, or put append_eos into the row.",
    )


def read_cdpo(row: Row, options: "ReadOptions") -> Iterator[Pair]:
    """A scored file: weight 1 on the chosen side, 1 − s_t on the rejected side."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    yield make_pair(
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
            yield make_pair(
                row,
                prompt=prompt,
                prefix="",
                chosen=Side(text=row.as_text(responses[chosen], f"responses[{chosen}]")),
                rejected=Side(text=row.as_text(responses[rejected], f"responses[{rejected}]")),
                append_eos=row.eos(default=True),
            )
        except RowError as error:  # the row's other pairs may still be good
            yield error


def make_pair(row: Row, *, prompt: Prompt, chosen: Side, rejected: Side, **fields: Any) -> Pair:
    """A pair with what a row says of its front, both sides checked against each other.

    Raises:
        RowError: a side that says nothing, or two that say the same.
    """
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if says_nothing(side.messages[-1]) if side.messages else not side.text.strip():
            raise row.error(name, "is empty", "Fill it in or remove the row.")
    if (chosen.text, chosen.messages) == (rejected.text, rejected.messages):
        raise row.error("rejected", "is the same text as 'chosen'", "Remove the row.")
    return Pair(chosen=chosen, rejected=rejected, **fields, **front_fields(row, prompt))


def front_fields(row: Row, prompt: Prompt) -> dict[str, Any]:
    """The prompt with what a row says of the chat beside it, as arguments of `Front`.

    Raises:
        RowError: `system`, `tools` or `chat_template_kwargs` of another form.
    """
    system = row.text("system", empty=True) if "system" in row else ""
    system = system if system.strip() else ""
    if system and not isinstance(prompt, str):
        if prompt[0]["role"] != "system":
            prompt = ({"role": "system", "content": system}, *prompt)
        elif prompt[0]["content"] != system:
            problem = "is another text than the system message of the prompt"
            raise row.error("system", problem, "Keep one of the two.")
    tools = _object(row, "tools", list, "a list of schemas")
    variables = _object(row, "chat_template_kwargs", dict, 'such as {"enable_thinking": false}')
    return {
        "prompt": prompt,
        "system": system if "system" in row and isinstance(prompt, str) else None,
        "tools": tuple(tools or ()),
        "variables": variables or {},
        "source": row.source,
        "row": row.index,
    }


def _object(row: Row, field: str, kind: type, form: str) -> Any:
    """A field that is an object, or an object as JSON; None where it is missing."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise row.error(field, f"is no JSON ({error})", f"Write {form}.") from error
    if value is not None and not isinstance(value, kind):
        raise row.error(field, f"is a {type(value).__name__}", f"Write {form}.")
    return value


def read_prompt(row: Row, remedy: str = NEEDED) -> Prompt:
    """The row's prompt: text, or messages as the chat template takes them.

    Raises:
        RowError: it is missing, empty or neither; `remedy` says what rows need.
    """
    if not is_conversational(row.get("prompt")):
        return row.text("prompt", remedy=remedy)
    messages = read_messages_field(row, "prompt")
    return tuple(plain_message(row, message, "prompt", "plain") for message in messages)


def _split_prompt(row: Row, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
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


def refuse_media(row: Row) -> None:
    """Raises RowError for a row with pictures, sound or films."""
    for field in ("images", "image", "videos", "audio"):
        if row.get(field):
            raise row.error(field, "is no text", "prefkit trains text models: remove the field.")
