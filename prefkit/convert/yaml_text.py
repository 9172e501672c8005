"""Values as YAML writes them, in a file and within a sentence."""

from typing import Any

import yaml


def in_words(value: Any, longest: int = 60) -> str:
    """A value as YAML writes it on a line, shortened to so many characters."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
    ).strip()
    text = " ".join(text.removesuffix("...").split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def entry(name: str, value: Any) -> str:
    """An option on a line of its own; a text of several lines keeps them."""
    several = isinstance(value, list | dict)
    options: dict[str, Any] = {"default_flow_style": True} if several else {}
    text = yaml.dump(
        value if several else {name: value},
        Dumper=_Dumper,
        allow_unicode=True,
        width=10_000,
        sort_keys=False,
        **options,
    )
    return f"{name}: {text}" if several else text


class _Dumper(yaml.SafeDumper):
    """A text of several lines is written as a block, line by line."""


def _write_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _write_text)
