"""The config file of a run: prefkit's own, or another trainer's, translated while it is read."""

import os
import re
import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from prefkit.convert.engine import Translation, find_trainer, refused, translate
from prefkit.errors import ConfigError, PrefkitError
from prefkit.options.command import Command
from prefkit.options.parse import read_file
from prefkit.options.yaml_file import read_yaml

# Whether a run can have them depends on packages, files and devices that are there.
OF_THE_MACHINE = ("deepspeed", "fsdp_config", "tf32")


def read_config(command: Command, path: str) -> dict[str, Any]:
    """The options that a config file gives.

    Another trainer's is told by its names; what was made of it is said on stderr.

    Args:
        command: whose options they are, those of transformers included.
        path: a YAML file.

    Raises:
        ConfigError: anything wrong with the file, a key or a value; or keys of another trainer that
            prefkit cannot serve.
    """
    from prefkit.convert.report import refusals, summary

    content = read_yaml(path)
    found = find_trainer(content, command.fields, names_of_transformers())
    if found is None:
        return read_file(command, path)
    translation = translate(found.trainer, content, command, names_of_transformers())
    title = found.trainer.title
    if lines := refusals(translation):
        raise ConfigError(
            f"{path} is a config of {title}, and some of it has no place in prefkit:\n{lines}\n"
            "Remove these keys, or leave them out with: "
            f"prefkit convert {path} --skip-refused"
        )
    if os.environ.get("RANK", "0") == "0":
        print(summary(translation, path), file=sys.stderr, flush=True)
    return dict(translation.options)


def names_of_transformers() -> Collection[str]:
    """The fields of `transformers.TrainingArguments`."""
    from transformers import TrainingArguments

    return {field.name for field in fields(TrainingArguments)}


def checked(translation: Translation) -> Translation:
    """A translation of which `prefkit train` would take the options.

    What it would refuse of them is refused under the key that became it. Nothing is asked of this
    machine, where the run need not be.

    Raises:
        PrefkitError: options that do not go together, and that no key of the file became.
    """
    while (error := _error(translation.options)) is not None:
        name = _named(f"{error}", translation) or _eliminated(f"{error}", translation)
        if name is None:
            raise error
        translation = refused(translation, name, f"{error}")
    return translation


def _error(options: Mapping[str, Any]) -> PrefkitError | None:
    """What `prefkit train` would say of the options before it looks at rows and model."""
    from prefkit.train.checks.options import one_line_errors
    from prefkit.train.checks.synced import refuse_synced_adapter
    from prefkit.train.options import make_options

    given = {name: one for name, one in options.items() if name not in OF_THE_MACHINE}
    variables = dict(os.environ)  # transformers sets some by its options
    try:
        with one_line_errors(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for the run
            script, config, _ = make_options(given, needs_data=False)
            adapter = None if script.adapter == "none" else script.adapter
            refuse_synced_adapter(config, script.model, adapter)
    except PrefkitError as error:
        return error
    finally:
        os.environ.clear()
        os.environ.update(variables)
    return None


def _named(words: str, translation: Translation) -> str | None:
    """The option that a message names first, of those that keys became."""
    known = {name for line in translation.lines for name in line.written}
    names = (word for word in re.findall(r"\w+", words) if word in known)
    return next((name for name in names if name in translation.options), None)


def _eliminated(words: str, translation: Translation) -> str | None:
    """The option without which another library does not say so; it need not name it."""
    options = translation.options
    for name in {name: 0 for line in translation.lines for name in line.written}:
        rest = {other: one for other, one in options.items() if other != name}
        if f"{_error(rest)}" != words:
            return name
    return None
