"""The chat template that trains is the one that is saved with the model.

A template that was given as an option, or that rows were prepared with, is put on the tokenizer
that the trainer saves, so that whoever loads the folder writes prompts as they were trained.
"""

import copy
import logging
from typing import Any

from prefkit.data.text.template import read_template
from prefkit.errors import ConfigError

logger = logging.getLogger(__name__)


def with_trained_template(tokenizer: Any, args: Any, dataset: Any) -> Any:
    """The tokenizer to save: a copy where its template is not the one that trains.

    Args:
        tokenizer: of the run; it is not changed.
        args: `chat_template` and `chat_template_kwargs` are read.
        dataset: the training rows, prepared; their `chat_template` is what they were written with.

    Raises:
        ConfigError: a template that cannot be read, or rows that were prepared with another one.
    """
    asked = _asked(tokenizer, args)
    used = getattr(dataset, "chat_template", None)
    if asked is not None and used not in (None, asked):
        raise ConfigError(
            "chat_template is given, but the rows were prepared with another template. Give the "
            "same one to prepare_pairs or prepare_solutions, or leave it out here."
        )
    if args.chat_template_kwargs:
        logger.warning(
            "chat_template_kwargs %s are no part of the template that is saved with the model: "
            "give them again wherever it is used (apply_chat_template, prefkit build, evaluate).",
            args.chat_template_kwargs,
        )
    trained = asked if asked is not None else used
    if trained is None or trained == tokenizer.chat_template:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = trained
    return tokenizer


def refuse_other_template(tokenizer: Any, args: Any, trained: Any, rows: Any, name: str) -> None:
    """Refuses rows to evaluate on that another template wrote than the one that trains.

    Args:
        tokenizer: of the run.
        args: `chat_template` is read: what trains, where it is given.
        trained: the training rows, prepared, or None; what they were written with counts else.
        rows: prepared rows; text without a template, or in no chat, passes.
        name: what the rows are called.

    Raises:
        ConfigError: see above.
    """
    used, asked = getattr(rows, "chat_template", None), _asked(tokenizer, args)
    wanted = asked if asked is not None else getattr(trained, "chat_template", None)
    if None not in (used, wanted) and used != wanted:
        raise ConfigError(
            f"The {name} rows were prepared with another chat template than the one that trains, "
            "so their metrics would be of another task. Prepare them with the same chat_template."
        )


def _asked(tokenizer: Any, args: Any) -> Any:
    """The template that is given as an option, None for none."""
    if args.chat_template is None:
        return None
    return tokenizer.get_chat_template(read_template(args.chat_template))
