"""Options of `prefkit score`, without importing anything heavy; texts are the help lines."""

import math
from dataclasses import dataclass
from typing import Literal

from prefkit.errors import ConfigError
from prefkit.options.prompt import TextFields


@dataclass(kw_only=True)
class ScoreFields(TextFields):
    """How pairs are scored.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    # -- scores ---------------------------------------------------------------------------------
    beta: float = 1.0
    """Contrast strength b of s = softmax((1 + b) z_p - b z_n) (1 in the paper's code)."""
    sides: Literal["rejected", "both"] = "rejected"
    """both also scores the chosen side, into chosen_scores, to look at: training reads it not."""
    format: Literal["weights", "prob_result"] = "weights"
    """weights = rejected_weights with token ids, as JSON lines; prob_result = the scored file of
    cDPO's released code, as columns in one JSON object."""

    # -- rows -----------------------------------------------------------------------------------
    row_format: str = "auto"
    """Format of the rows, as --format of `prefkit train`; auto tells it by their fields."""
    level: Literal["auto", "step", "solution"] = "auto"
    """What a row with a prefix is trained on: one step, or the rest of the solution; auto as
    method cdpo reads it."""
    mask_tool_output: bool = True
    """Tool output is context, whose scores are never read."""
    block_style: str = "plain"
    """How typed blocks are written out: plain or tagged."""
    split: str = "train"
    """Split of a dataset with several."""

    # -- computation ----------------------------------------------------------------------------
    batch_size: int = 16
    """Sequences a forward pass of each model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Number format of the models; scores are computed in float32."""
    memory_budget: int | None = None
    """Bytes for buffers of logits; None = a sensible default."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError(f"beta is {self.beta}; it must be 0 or more, such as 1.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be 1 or more.")
        for name, offered in (
            ("sides", ("rejected", "both")),
            ("format", ("weights", "prob_result")),
            ("on_bad_row", ("error", "skip")),
            ("dtype", ("auto", "float32", "bfloat16", "float16")),
        ):
            if (value := getattr(self, name)) not in offered:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(offered)}.")
        if self.too_long == "truncate_end":
            raise ConfigError(
                "too_long is truncate_end, but weights belong to all tokens of a response, and the "
                "models cannot read those that are cut. Use error or skip."
            )
        if self.sides == "both" and self.format == "prob_result":
            raise ConfigError(
                "format prob_result holds the scores of both sides already. Leave sides out."
            )
