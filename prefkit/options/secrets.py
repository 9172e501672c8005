"""Options that are secrets: a run uses them, and no file or message of prefkit's has them.

`training_args.bin` is transformers' own, a pickle of the whole config, and does have them.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "…"
_SECRET = re.compile(
    r"(\w*_)?(hub|hf|auth|access|api)_token|token"
    r"|\w*(api_?key|access_key|secret|secret_key|password|webhook_url)",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether a name, of the form `outer.name` too, is that of a secret."""
    return _SECRET.fullmatch(name.rpartition(".")[2]) is not None


def without_secrets(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options without those that are secrets, and the names of what was left out.

    Args:
        options: name → value; a value may be a mapping of the same kind. A secret is a text:
            `token: true` is none.

    Returns:
        the rest, without mappings that are empty now; and the names, as `outer.name`.
    """
    kept: dict[str, Any] = {}
    left_out = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            inner, names = without_secrets(value)
            left_out += [f"{name}.{one}" for one in names]
            if inner or not names:
                kept[name] = inner
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            inner, names = without_secrets({f"{name}[{i}]": one for i, one in enumerate(value)})
            left_out += names
            kept[name] = [*inner.values()]
        elif isinstance(value, str) and is_secret(str(name)):
            left_out.append(str(name))
        else:
            kept[name] = value
    return kept, left_out


def hidden(value: Any, name: str = "") -> Any:
    """A value to be shown, with `HIDDEN` in the place of each secret in it.

    Args:
        value: of YAML's types.
        name: of the value.
    """
    if isinstance(value, Mapping):
        return {key: hidden(one, str(key)) for key, one in value.items()}
    if isinstance(value, list):
        return [hidden(one, name) for one in value]
    return HIDDEN if isinstance(value, str) and value and is_secret(name) else value
