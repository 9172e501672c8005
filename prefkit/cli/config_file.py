"""The config file of a run: prefkit's own, or another trainer's, translated while it is read."""

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from prefkit.errors import ConfigError
from prefkit.options.command import Command
from prefkit.options.parse import read_file
from prefkit.options.yaml_file import read_yaml


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
    from prefkit.convert.engine import find_trainer, translate
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


def check_together(options: Mapping[str, Any]) -> None:
    """Refuses options of which the method does not read one, or that exclude each other.

    Raises:
        ConfigError: names the option.
    """
    from prefkit.loss.objectives import METHODS, check_method_reads

    method = options.get("method", "dpo")
    check_method_reads(method, options)
    METHODS[method].build(options)
