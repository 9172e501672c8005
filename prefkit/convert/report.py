"""A translation for people: the table of its keys, a few lines of it, and the config file."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from prefkit.convert.draft import Line
from prefkit.convert.engine import Translation
from prefkit.convert.yaml_text import entry, in_words
from prefkit.options.secrets import HIDDEN, hidden

WIDTH = 100
_UNSET: tuple[Any, ...] = (None, False, "", [], {})
_TITLES = {
    "translated": "Translated",
    "same": "The same here",
    "default": "{title}'s defaults where prefkit has others",
    "left out": "Left out: no part in what is learnt, or none in this run",
    "refused": "Refused: it changes what is learnt, and prefkit does not do it",
}


def table(translation: Translation) -> str:
    """Every key of the config under what became of it, and the defaults that were written."""
    title, sections = translation.trainer.title, []
    for kind, heading in _TITLES.items():
        if lines := translation.of_kind(kind):
            unset = [line.key for line in lines if kind == "left out" and line.value in _UNSET]
            shown = [_row(line) for line in lines if line.key not in unset]
            if unset:
                shown.append(_wrap(f"  {'not set':36}  {', '.join(unset)}"))
            sections.append("\n".join([f"{heading.format(title=title)} ({len(lines)})", *shown]))
    return "\n\n".join(sections)


def summary(translation: Translation, path: str) -> str:
    """What was made of a config, in a few lines."""
    count = {kind: len(translation.of_kind(kind)) for kind in _TITLES}
    title = translation.trainer.title
    told = [f"{count['translated'] + count['same']} keys are prefkit's options now"]
    if count["default"]:
        told.append(f"{count['default']} of {title}'s defaults are kept")
    if left := translation.of_kind("left out"):
        told.append(f"left out: {', '.join(line.key for line in left)}")
    lines = [f"{path} is a config of {title}: {'; '.join(told)}."]
    lines += [f"{line.key}: {line.why}." for line in _remarks(translation)]
    lines.append(f"All of it: prefkit convert {path}")
    return "\n".join(_wrapped(lines))


def refusals(translation: Translation) -> str:
    """Each refused key with reason and remedy, a line each."""
    return "\n".join(_wrapped([_refusal(line) for line in translation.of_kind("refused")]))


def config_file(translation: Translation, path: str) -> str:
    """The translation as a config of `prefkit train`; what was refused stands in comments."""
    title, version = translation.trainer.title, translation.trainer.version
    lines = [f"Made of {path} ({title} {version}) by prefkit convert."]
    lines += [f"{line.key}: {line.why}." for line in _remarks(translation)]
    if refused := translation.of_kind("refused"):
        lines.append(f"Not in this run, though {title}'s has it:")
        lines += [_refusal(line) for line in refused]
    comments = "".join(f"# {part}\n" for part in _wrapped(lines, WIDTH - 2))
    return comments + "".join(entry(name, one) for name, one in translation.options.items())


def _row(line: Line) -> str:
    left = f"{line.key}: {_shown(line, line.value)}"
    if line.remedy:
        said = f"{line.why}. {line.remedy}"
    elif not line.written:
        said = line.why
    elif line.kind == "same":
        said = ""
    else:
        said = ", ".join(f"{k}: {_shown(line, one, 100)}" for k, one in line.written.items())
        said = f"-> {said}" + (f"  ({line.why})" if line.why else "")
    return _wrap(f"  {left:36}  {said}".rstrip())


def _wrap(row: str) -> str:
    return "\n".join(textwrap.wrap(row, WIDTH, subsequent_indent=" " * 40))


def _refusal(line: Line) -> str:
    default = " (its default)" if line.is_default else ""
    return f"{line.key}: {_shown(line, line.value)}{default}: {line.why}. {line.remedy}"


def _shown(line: Line, value: Any, longest: int = 60) -> str:
    """A value, without the secrets that its key or keys within it name."""
    shown = hidden(value, line.key)
    return HIDDEN if shown == HIDDEN else in_words(shown, longest)


def _remarks(translation: Translation) -> Iterator[Line]:
    """What differs although it was translated."""
    return (line for line in translation.lines if line.written and line.why)


def _wrapped(lines: Sequence[str], width: int = WIDTH) -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)
    ]
