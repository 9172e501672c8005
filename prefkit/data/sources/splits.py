"""Splits of a dataset, and the first rows of one: `train[:1000]`, as `datasets` writes it."""

import re

from prefkit.errors import PrefkitError


def parts_of(split: str) -> tuple[str, int | None]:
    """The name of a split, and how many of its first rows are read; None = all.

    Raises:
        PrefkitError: anything else in brackets, which only a dataset of the Hub can serve.
    """
    name, bracket, rest = split.partition("[")
    if not bracket:
        return split, None
    if (found := re.fullmatch(r":(\d+)\]", rest)) is None:
        raise PrefkitError(
            f"The split {split!r} is not read from here. Write a name, or a name and how many of "
            "its first rows, such as train[:1000]."
        )
    return name, int(found[1])
