"""Options of `prefkit score`, without importing anything heavy; texts are the help lines."""

from dataclasses import dataclass
from typing import Literal

from prefkit.errors import ConfigError
from prefkit.options.check import check_options
from prefkit.options.option import option
from prefkit.options.prompt import BlockStyle, EqualField, RowFormat, TextFields


@dataclass(kw_only=True)
class ScoreFields(TextFields, EqualField):
    """How pairs are scored.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    # -- scores ---------------------------------------------------------------------------------
    beta: float = option(1.0, at_least=0)
    """Contrast strength b of s = softmax((1 + b) z_p - b z_n) (1 in the paper's code)."""
    sides: Literal["rejected", "both"] = "rejected"
    """both also scores the chosen response, into chosen_scores, to look at; training does not read
    it."""
    format: Literal["weights", "prob_result"] = "weights"
    """weights = rejected_weights with token ids, as JSON lines; prob_result = the scored file of
    cDPO's released code, as columns in one JSON object."""

    # -- rows -----------------------------------------------------------------------------------
    row_format: RowFormat = "auto"
    """Format of the rows, as --format of `prefkit train`; auto tells it by their fields."""
    level: Literal["auto", "step", "solution"] = "auto"
    """What a row with a prefix is trained on: one step, or the rest of the solution; auto as
    method cdpo reads it."""
    mask_tool_output: bool = True
    """Tool output is context, whose scores are never read."""
    block_style: BlockStyle = "plain"
    """How typed blocks are written out: plain or tagged."""
    split: str = "train"
    """Split of a dataset with several."""

    # -- computation ----------------------------------------------------------------------------
    batch_size: int = option(16, at_least=1)
    """Sequences a forward pass of each model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Number format of the models; scores are computed in float32."""
    memory_budget: int | None = option(None, at_least=1)
    """Bytes for buffers of logits; None = a sensible default."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.too_long == "truncate_end":
            raise ConfigError(
                "too_long is truncate_end, but weights belong to all tokens of a response, and the "
                "models cannot read those that are cut. Use error or skip."
            )
        if self.sides == "both" and self.format == "prob_result":
            raise ConfigError(
                "format prob_result holds the scores of both sides already. Leave sides out."
            )
