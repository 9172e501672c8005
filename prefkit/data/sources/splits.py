"""Splits of a dataset, and the first rows of one: `train[:1000]`, as `datasets` writes it.

Where there are fewer rows, all are read, as `datasets` itself does not.
"""

import re

from prefkit.errors import PrefkitError


def parts_of(split: str) -> tuple[str, int | None]:
    """The name of a split, and how many of its first rows are read; None = all.

    Other parts (`train[10%:]`) stay in the name: `datasets` can take them out of what it loads.
    """
    found = re.fullmatch(r"(.*)\[:(\d+)\]", split)
    return (found[1], int(found[2])) if found else (split, None)


def first_rows(split: str) -> int | None:
    """How many rows are read of a source without splits; None = all.

    Raises:
        PrefkitError: another part of a split.
    """
    name, most = parts_of(split)
    if "[" in name:
        raise PrefkitError(
            f"The split {split!r} is not read from here. Write a name, or a name and how many of "
            "its first rows, such as train[:1000]."
        )
    return most
