"""`prefkit demo`: its flags; what it does is in `prefkit.demo`."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.demo.run import METHODS, STEPS
from prefkit.demo.run import run as run_demo
from prefkit.options.command import Command
from prefkit.options.option import option
from prefkit.options.parse import read_flags, split


@dataclass(kw_only=True)
class DemoOptions:
    """What the demo trains."""

    method: str = option("step-dpo", choices=METHODS)
    """How the tiny model is trained."""
    steps: int = STEPS
    """Optimiser steps of 32 pairs."""
    problems: int = 500
    """Held-out problems to measure on, before and after."""
    seed: int = 0
    """Order of the pairs and choice of the problems."""
    output_dir: str | None = None
    """Where the trained model is kept; None = nowhere."""


COMMAND = Command(
    name="demo",
    line=("[--seed N] [--method METHOD]", "train the embedded tiny model: a minute on a CPU"),
    about="Trains the embedded tiny model on step pairs, and measures it before and after.",
    options=(DemoOptions,),
)


def run(argv: Sequence[str]) -> int:
    """Runs the demo; returns the exit code.

    Raises:
        ConfigError: a flag that cannot be read, or a value out of range.
    """
    _, flags = split(COMMAND, argv)
    run_demo(**vars(DemoOptions(**read_flags(COMMAND, flags))))
    return 0
