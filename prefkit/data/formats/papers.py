"""Rows as three papers publish them: Step-DPO, cDPO and TDPO.

    step-dpo   Math-Step-DPO-10K (arXiv 2406.18629): initial_reason_steps, full_chosen, …
    cdpo       scored files with prob_result (arXiv 2411.19943)
    tdpo       one prompt with responses and index pairs (arXiv 2404.11999)

A reader yields the row's pairs and raises RowError where the row makes no sense. Most rows are one
pair; a row of TDPO's may be many, of which a bad one does not spoil the others.
"""

from collections.abc import Iterator
from typing import Any

from prefkit.data.formats.fields.prompt import read_prompt, refuse_media
from prefkit.data.formats.fields.responses import RowOptions, make_pair, open_end, weighted_side
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.fields.weights import read_scored_side
from prefkit.data.pair import Pair, Side, is_conversational
from prefkit.errors import RowError


def read_step_dpo(row: Row, options: RowOptions) -> Iterator[Pair]:
    """Math-Step-DPO-10K, and own rows with full_chosen: single steps, or the two solutions after
    the shared steps."""
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
        chosen=weighted_side(row, "chosen", texts[0], plain=whole),
        rejected=weighted_side(row, "rejected", texts[1], plain=whole),
        append_eos=row.eos(default=options.level != "step"),
    )


def read_cdpo(row: Row, options: RowOptions) -> Iterator[Pair]:
    """A scored file: weight 1 on the chosen response, 1 − s_t on the rejected one."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    yield make_pair(
        row,
        prompt=read_prompt(row),
        prefix="",
        chosen=Side(text=chosen),
        rejected=Side(text=rejected, token_weights=read_scored_side(row, "neg", rejected)),
        append_eos=row.eos(default=True),
    )


def read_tdpo(row: Row, options: RowOptions) -> Iterator[Pair | RowError]:
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
