"""Sources of rows without a length: recognised, and refused where all rows are read at once."""

from collections.abc import Mapping
from typing import Any

from prefkit.errors import ConfigError

# What a message tells to give in place of a stream.
SOME = "datasets.Dataset.from_list(list(stream.take(1000)))"
SOME_OF_ANY = "list(itertools.islice(rows, 1000))"


def is_stream(source: Any) -> bool:
    """Whether a source is rows that come one after the other, their number unknown."""
    whole = isinstance(source, str | bytes | Mapping) or hasattr(source, "__len__")
    return hasattr(source, "__iter__") and not whole


def stream_of(source: Any, split: str) -> Any:
    """The stream that a source is, or holds under the name of a split; None where it is none."""
    if isinstance(source, Mapping):
        source = source.get(split)
    return source if is_stream(source) else None


def refuse_stream(source: Any, what: str) -> None:
    """Refuses a stream where rows are read whole, which an endless one would never be.

    Args:
        source: of rows, of any kind.
        what: what messages call it.

    Raises:
        ConfigError: it is a stream; names what to give instead.
    """
    if is_stream(source):
        some = SOME if hasattr(source, "take") else SOME_OF_ANY
        raise ConfigError(
            f"{what}: is a stream ({type(source).__name__}), and its rows would be read to an end "
            f"that may not come. Give some of them: {some}."
        )
