"""One dataclass field says all there is to say of an option: name, type, default, range, help.

    link: Literal["sigmoid", "hinge"] = option("sigmoid")
    \"\"\"How a margin becomes a loss.\"\"\"

Choices and number types are those of the annotation, the text under the field is its help. What
`option` adds is kept in the field's metadata, as `Rules`. Checks (`prefkit.options.check`), flags,
help, the page docs/options.md and the comparison of a resumed run with its options are derived.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

_KEY = "prefkit"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What an option says beyond its name, type, default and help.

    Attributes:
        above, at_least, below, at_most: limits of a number, or of each number of a list.
        choices: allowed values that are known only when the program runs; others stand in the
            annotation, as a Literal.
        only_for: the methods that read it; None = all that have the field.
        by_method: what an option that is left out (None) means, where that depends on the method.
        free: whether a resumed run may change it, because it does not decide what is learnt.
        formerly: the name that it had in earlier versions.
        missing: what to say where it has no value and needs one.
        around_prompt: it is text around a prompt, in whose flag \\n is a line break.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: Sequence[str] | None = None
    only_for: tuple[str, ...] | None = None
    by_method: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    free: bool = False
    formerly: str | None = None
    missing: str | None = None
    around_prompt: bool = False


def option(
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] | Any = MISSING,
    compare: bool = True,
    **rules: Any,
) -> Any:
    """A dataclass field with `Rules`.

    Args:
        default, default_factory, compare: as in `dataclasses.field`.
        rules: attributes of `Rules`.
    """
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        compare=compare,
        metadata={_KEY: Rules(**rules)},
    )


def is_option(field: dataclasses.Field) -> bool:
    """Whether a field was made with `option`."""
    return _KEY in field.metadata


def rules_of(field: dataclasses.Field) -> Rules:
    """The rules of a field; those of an option without any where it was made without `option`."""
    return field.metadata.get(_KEY, Rules())


def default_of(field: dataclasses.Field) -> Any:
    """What an option is where nobody gives it; MISSING where it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def choices_of(field: dataclasses.Field, hint: Any) -> tuple[Any, ...]:
    """The values that an option may take, None where they are not listed.

    Args:
        field: of a dataclass.
        hint: its resolved annotation.
    """
    if (listed := rules_of(field).choices) is not None:
        return tuple(listed)
    parts = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else (hint,)
    found = [typing.get_args(part) for part in parts if typing.get_origin(part) is typing.Literal]
    return tuple(choice for choices in found for choice in choices)


def former_names(*classes: type) -> dict[str, str]:
    """Earlier name → present name, of the options of some dataclasses."""
    fields = [field for cls in classes for field in dataclasses.fields(cls)]
    return {old: field.name for field in fields if (old := rules_of(field).formerly)}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass and of what it inherits from, read from source."""
    docs: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(one) and one.__module__.startswith("prefkit."):
            docs |= _own_docs(one)
    return docs


def _own_docs(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value.value if isinstance(following, ast.Expr) else ""  # type: ignore[attr-defined]
            docs[statement.target.id] = " ".join(text.split())
    return docs
