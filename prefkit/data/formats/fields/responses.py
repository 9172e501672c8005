"""The two responses of a row: where they end, their weights, and the pair that they make."""

from dataclasses import dataclass
from typing import Any

from prefkit.data.formats.fields.blocks import check_block_style
from prefkit.data.formats.fields.messages import says_nothing
from prefkit.data.formats.fields.prompt import Prompt, front_fields
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.fields.weights import read_spans, read_token_weights
from prefkit.data.pair import Pair, Side
from prefkit.errors import ConfigError, EqualError, RowError

LEVELS = ("auto", "step", "solution")


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How the responses of a row are read, whatever its format.

    Attributes:
        level: "step" = a row with a prefix ends after one step (no end-of-sequence token) and
            Math-Step-DPO rows give their single steps; "solution" = responses run to the end of
            the solution, and rows with full_chosen and full_rejected give those; "auto" = solution,
            but a row with a prefix that leaves open where its responses end is an error.
        mask_tool_output: execution blocks are context, not scored.
        block_style: how typed blocks become text (blocks.py).
    """

    level: str = "step"
    mask_tool_output: bool = True
    block_style: str = "plain"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"level is {self.level!r}. Choose one of: {', '.join(LEVELS)}.")
        check_block_style(self.block_style)


def make_pair(row: Row, *, prompt: Prompt, chosen: Side, rejected: Side, **fields: Any) -> Pair:
    """A pair of a row's context and its two responses, which are compared with each other.

    Raises:
        RowError: an empty response, or two that are the same.
    """
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if says_nothing(side.messages[-1]) if side.messages else not side.text.strip():
            raise row.empty(name)
    if (chosen.text, chosen.messages) == (rejected.text, rejected.messages):
        raise same_text(row)
    return Pair(chosen=chosen, rejected=rejected, **fields, **front_fields(row, prompt))


def same_text(row: Row) -> RowError:
    """The error of a row whose two responses are the same."""
    return row.error("rejected", "is the same text as 'chosen'", "Remove the row.", EqualError)


def weighted_side(row: Row, name: str, text: str, plain: bool = False) -> Side:
    """A response with the row's weights; `plain` where they were made for another text."""
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


def open_end(row: Row, front: str) -> RowError:
    """The error of a row with a prefix that leaves open where its responses end."""
    return row.error(
        front,
        "leaves open where chosen and rejected end: after one step, or with the solution",
        "Say level: step (no end-of-sequence token) or level: solution, give full_chosen and "
        "full_rejected, or put append_eos into the row.",
    )
