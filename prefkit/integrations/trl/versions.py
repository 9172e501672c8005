"""Which versions of TRL this has been tested with, and what differs between them.

What is replaced here (`_compute_loss`, `_prepare_dataset`, …) is private to TRL, and may mean
something else in a version that nobody has tried, so any other version is refused.
"""

import contextlib
import functools
import importlib.metadata
import logging
import os
from typing import Any

from prefkit.errors import ConfigError

logger = logging.getLogger(__name__)

TESTED = ("1.9", "1.10", "1.11", "1.12", "1.13", "1.14", "1.15", "1.16")
UNTESTED = "PREFKIT_UNTESTED_TRL"  # this variable lets any version through


def check_version() -> str:
    """The installed version of TRL.

    Raises:
        ConfigError: TRL is not installed, or its version was not tested.
    """
    tested = f"TRL {TESTED[0]} to {TESTED[-1]}"
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"prefkit.integrations.trl needs {tested}, and no TRL is installed. Install it with "
            f"pip install 'trl=={TESTED[-1]}.*'."
        ) from error
    if ".".join(version.split(".")[:2]) in TESTED:
        return version
    if os.environ.get(UNTESTED, "") in ("", "0"):
        raise ConfigError(
            f"prefkit.integrations.trl is tested with {tested}; installed is {version}. Install "
            f"one of those, or set {UNTESTED}=1 to try this one."
        )
    logger.warning("prefkit.integrations.trl is tested with %s, not with %s.", tested, version)
    return version


@functools.cache
def _older_than(major: int, minor: int) -> bool:
    """Whether the installed version is older than major.minor."""
    version = importlib.metadata.version("trl").split(".")
    return (int(version[0]), int(version[1])) < (major, minor)


def drops_constants() -> bool:
    """Whether TRL leaves out what cancels in f(chosen) − f(rejected), f of `f_divergence_type`.

    Before 1.10. It does not cancel where each is divided by a length of its own.
    """
    return _older_than(1, 10)


def tp_size(trainer: Any) -> int:
    """How many processes are given the same rows (tensor parallelism); each counts their tokens.

    TRL counts them once since 1.13.
    """
    return 1 if _older_than(1, 13) else int(trainer._tp_size)


def deprecates_outputs() -> bool:
    """Whether TRL warns of the logits that compute_metrics is given: from 1.15 on."""
    return not _older_than(1, 15)


def precompute_autocast(trainer: Any) -> contextlib.AbstractContextManager[Any]:
    """The autocast under which TRL precomputes the reference's log-probabilities: from 1.15 on."""
    if _older_than(1, 15):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = trainer.accelerator.autocast()
    return context
