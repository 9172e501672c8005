"""Which bad rows are left out, and under which name they are counted; all others stop the run."""

from dataclasses import dataclass

from prefkit.errors import ConfigError, EmptyError, EqualError, RowError, TooLongError

# In the order in which an error is looked for: what fills max_length is also empty.
_KINDS: tuple[tuple[type[RowError], str], ...] = (
    (TooLongError, "too long"),
    (EmptyError, "empty"),
    (EqualError, "equal"),
)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Which bad rows are left out: "error" = none of the kind, "skip" = all of it.

    Attributes:
        on_bad_row: of any kind.
        too_long: longer than `max_length`; "truncate_end" leaves none of them out.
        empty: of a prompt or response that says nothing, cut at `max_length` included.
        equal: of two responses that are the same.

    Raises:
        ConfigError: another value.
    """

    on_bad_row: str = "error"
    too_long: str = "error"
    empty: str = "error"
    equal: str = "error"

    def __post_init__(self) -> None:
        for name in ("on_bad_row", "empty", "equal"):
            if (given := getattr(self, name)) not in ("error", "skip"):
                raise ConfigError(f"{name} is {given!r}. Choose one of: error, skip.")

    def reason(self, error: RowError) -> str:
        """Under which name a row that is left out is counted: its kind, or the field at fault.

        Raises:
            RowError: the error itself, where its row is not to be left out; it names the option
                that would leave it out.
        """
        choices = {"too long": self.too_long, "empty": self.empty, "equal": self.equal}
        kinds = [name for kind, name in _KINDS if isinstance(error, kind)]
        if self.on_bad_row != "skip" and all(choices[name] != "skip" for name in kinds):
            if type(error) in (EmptyError, EqualError):
                remedy = f'{error.remedy} Or set {kinds[0]} to "skip": such rows are then counted.'
                raise type(error)(error.source, error.row, error.field, error.problem, remedy)
            raise error
        return kinds[0] if kinds else error.field.split("[")[0] or "whole row"
