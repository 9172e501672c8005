"""Whether a value of a row is a chat message, or several."""

from typing import Any


def is_message(value: Any) -> bool:
    """Whether a value is one message, of either form."""
    return isinstance(value, dict) and ("role" in value or {"from", "value"} <= set(value))


def is_conversational(value: Any) -> bool:
    """Whether a field holds messages, or a single one, rather than text."""
    return is_message(value) or (isinstance(value, list) and bool(value) and is_message(value[0]))
