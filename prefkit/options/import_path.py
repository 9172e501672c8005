"""A function that an option names by its import path, "package.module:function"."""

import importlib
from collections.abc import Callable
from typing import Any

from prefkit.errors import ConfigError


def load_function(option: str, path: str) -> Callable[..., Any]:
    """The function of a path.

    Args:
        option: whose value it is, for the message.
        path: "package.module:function"; the function's name may have dots.

    Raises:
        ConfigError: no such form, module or name, an import that fails, nothing to call.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"{option} is {path!r}; it must read module:function.")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} {path!r} cannot be imported: {error}. A module of your own must be on "
            "PYTHONPATH (PYTHONPATH=. for this folder)."
        ) from error
    except Exception as error:
        raise ConfigError(f"{option} {path!r} cannot be imported: {error!r}.") from error
    if not callable(found):
        raise ConfigError(f"{option} {path!r} is {type(found).__name__}, not a function.")
    return found


def path_of(option: str, function: Callable[..., Any]) -> str:
    """The import path of a function.

    Raises:
        ConfigError: importing it would give another one, as with a lambda.
    """
    path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        same = load_function(option, path) is function
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            f"{option} is {function!r}, which has no import path, and a run is described by names: "
            "write it as a function of a module of yours."
        )
    return path
