"""Errors that a user can act on.

Every mistake in a user's input becomes one of these: the message names the place (row, field,
option) and the remedy, and the command line prints it without a traceback. Anything else that is
raised is a bug of prefkit.
"""


class PrefkitError(ValueError):
    """A user's mistake; the message alone says what is wrong and what to do."""


class ConfigError(PrefkitError):
    """A config file, flag or combination of options that cannot work."""


class ModelError(PrefkitError):
    """A model, head, reference or adapter that cannot be trained as asked."""


class NoRowsError(PrefkitError):
    """A source of rows that holds none."""


class RowError(PrefkitError):
    """One row of the data is unusable.

    Args:
        source: file, dataset or object the row came from.
        row: 0-based position of the row in its source.
        field: the field at fault (or "" when the row as a whole is).
        problem: what is wrong, in a few words.
        remedy: what the user can do about it.
    """

    def __init__(self, source: str, row: int, field: str, problem: str, remedy: str) -> None:
        self.source, self.row, self.field = source, row, field
        self.problem, self.remedy = problem, remedy
        where = f"{source}: row {row}" + (f", field '{field}'" if field else "")
        super().__init__(f"{where}: {problem}. {remedy}")


class TooLongError(RowError):
    """A row longer than max_length that may not be cut."""


class EmptyError(RowError):
    """A row whose prompt or response says nothing."""


class NothingLeftError(TooLongError, EmptyError):
    """A row whose prompt fills max_length: cut there, its response would be empty."""


class EqualError(RowError):
    """A row whose two responses are the same."""
