"""`prefkit merge`: an adapter and its base model become one model folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefkit.errors import ConfigError
from prefkit.options.check import check_options
from prefkit.options.command import Command
from prefkit.options.option import option
from prefkit.options.parse import read_flags, split


@dataclass(kw_only=True)
class MergeOptions:
    """What is merged, and how it is saved."""

    out: str = option("", missing="Name the folder to make: --out FOLDER.")
    """Folder of the merged model; it must not exist (required)."""
    base_model: str | None = None
    """Folder or Hub name of the base model; None = the one that the adapter names."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format in which is merged and saved; auto = the base model's."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base model."""


_ABOUT = """\
Merges an adapter into its base model, and saves model, tokenizer and chat template.

Works for LoRA, DoRA and whatever PEFT can merge, with modules that were trained in full. A base
model that is stored quantised is dequantised first; after QLoRA the base is loaded as it is stored.
The folder appears when everything is in it.
"""
COMMAND = Command(
    name="merge",
    line=("ADAPTER --out FOLDER", "merge an adapter into its base model"),
    about=_ABOUT,
    words=("ADAPTER", "Folder of an adapter, as `prefkit train --adapter lora` saves it."),
    options=(MergeOptions,),
)


def run(argv: Sequence[str]) -> int:
    """Merges an adapter; returns the exit code.

    Raises:
        PrefkitError: a mistake in the options, the adapter or the base model.
    """
    words, flags = split(COMMAND, argv)
    if len(words) != 1:
        found = f"got {len(words)}: {', '.join(words)}" if words else "got none"
        raise ConfigError(f"One ADAPTER, please; {found}.")
    options = MergeOptions(**read_flags(COMMAND, flags))
    check_options(options)
    from transformers.utils import logging as transformers_logging

    from prefkit.model.merging import merge

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    merge(words[0], say=print, **vars(options))
    return 0
