"""Rows whose responses are strings: prefkit's own, and TRL's standard ones."""

from collections.abc import Iterator, Sequence

from prefkit.data.formats.conversations import read_conversation
from prefkit.data.formats.fields.prompt import Prompt, read_prompt, refuse_media
from prefkit.data.formats.fields.responses import (
    RowOptions,
    make_pair,
    open_end,
    same_text,
    weighted_side,
)
from prefkit.data.formats.fields.row import Row
from prefkit.data.pair import Pair, is_conversational


def read_strings(row: Row, options: RowOptions) -> Iterator[Pair]:
    """prefkit's own rows and TRL's standard ones: the responses are strings."""
    if is_conversational(row.get("chosen")) or is_conversational(row.get("rejected")):
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
        chosen=weighted_side(row, "chosen", chosen),
        rejected=weighted_side(row, "rejected", rejected),
        append_eos=row.eos(default=not is_step),
    )


def _split_prompt(row: Row, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """The prompt, given or implicit: then it is the responses' common beginning, as in TRL."""
    if "prompt" in row:
        return read_prompt(row), chosen, rejected
    for field in ("chosen_spans", "rejected_spans", "prefix"):
        if field in row:
            raise row.error("prompt", f"is missing in a row with '{field}'", "Give the prompt.")
    if chosen == rejected:
        raise same_text(row)
    length = beginning([chosen, rejected])
    if not chosen[:length].strip():
        problem = "is missing, and the two responses share no beginning that could be it"
        raise row.error("prompt", problem, "Give the prompt.")
    return chosen[:length], chosen[length:], rejected[length:]


def beginning(texts: Sequence[str]) -> int:
    """How many characters all texts begin with, without a space that belongs to the next word."""
    length = next(
        (i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1),
        min(map(len, texts)),
    )
    return length - texts[0][:length].endswith(" ")
