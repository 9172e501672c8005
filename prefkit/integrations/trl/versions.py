"""Which versions of TRL this has been tested with; any other is refused.

What is replaced here (`_compute_loss`, `_prepare_dataset`, …) is private to TRL, and may mean
something else in a version that nobody has tried.
"""

import importlib.metadata
import logging
import os

from prefkit.errors import ConfigError

logger = logging.getLogger(__name__)

TESTED = ("1.14", "1.15", "1.16")
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
