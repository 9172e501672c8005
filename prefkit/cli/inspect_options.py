"""The flags of `prefkit inspect`, and a train config in their place: read as `prefkit train` reads.

A flag wins over the config, the config over the defaults, which are those of training; only the
level of rows without a method is a step.
"""

import argparse
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prefkit.data.formats.detect import FORMATS
from prefkit.data.formats.fields.blocks import BLOCK_STYLES
from prefkit.data.text.render import TokenizeOptions
from prefkit.errors import ConfigError
from prefkit.loss.objectives import METHODS
from prefkit.train.fields import PreferenceFields, ScriptArguments

OPTIONS = tuple(field.name for field in fields(TokenizeOptions))
READING = ("mask_tool_output", "format", "block_style", "columns", "on_bad_row")
_OF_CONFIG = (*OPTIONS, *READING, "method", "level", "model", "tokenizer", "train_data")
_CONFIG_ENDINGS = (".yaml", ".yml")
_EPILOG = """\
what is shown:
  A config shows what `prefkit train CONFIG.yaml` scores; DATA alone shows single steps of rows that
  have a prefix, unless --level or --method says otherwise. In colour: prompt and prefix dim, scored
  tokens green (chosen) or red (rejected), greyer the lower their weight, context struck through.
  Without colour: ⟦scored⟧, ⟦scored⟧×0.3 for another weight than 1, the rest is context.

--json, one object a pair and line:
  {"pair": i, "tokens": [{"id": …, "text": …, "segment": …, "weight": …}, …],
   "eos": {"chosen": true|false, "rejected": true|false}}
  pair     place of the pair among all pairs, from 0
  tokens   the whole chosen sequence (prompt, prefix, response), then the whole rejected one
  segment  2i for a scored token of pair i's chosen side, 2i+1 for one of its rejected side, -1 for
           a token that is only context
  weight   what the token's log-probability counts; 0 for context, and for a token weighted 0
  eos      whether the side ends with a scored end-of-sequence token
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `prefkit inspect`; only flags that are given appear in the namespace."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.argument_default = argparse.SUPPRESS
    add = parser.add_argument
    add(
        "data",
        nargs="+",
        help="file, folder or hub name; several are joined. A first one ending in .yaml or .yml is "
        "a train config, whose train_data are shown where no other data follow",
    )
    add("--model", help="model folder or hub name: its tokenizer (default: the config's)")
    add("--json", action="store_true", help="one JSON object a pair (default: text for people)")
    add("--limit", type=int, help="pairs to show (default: all as JSON, else 3)")
    add("--split", help="split of a dataset with several (default: train)")
    _add_reading(parser.add_argument_group("reading"))
    _add_tokens(parser.add_argument_group("tokens"))


def _add_reading(group: Any) -> None:
    add = group.add_argument
    add("--method", choices=METHODS, help="read as this training method does (default: none)")
    add(
        "--level",
        choices=("auto", "step", "solution"),
        help="rows with a prefix end after one step, or run to the end of the solution; auto asks "
        "rows that leave it open (default: the method's level, step without a method)",
    )
    add(
        "--format",
        choices=("auto", *FORMATS),
        help="row format; auto tells it by the fields (default: auto)",
    )
    add(
        "--block_style",
        choices=tuple(BLOCK_STYLES),
        help="how typed blocks (text, code, execution) are written (default: plain)",
    )
    add(
        "--mask_tool_output",
        choices=("true", "false"),
        help="execution blocks are context and not scored (default: true)",
    )
    add(
        "--score_tool_output",
        action="store_true",
        help="the same as --mask_tool_output false (default: off)",
    )
    add(
        "--columns",
        help='fields in columns of other names, as \'{"prompt": "question"}\'; null leaves a '
        "column out (default: none)",
    )
    add(
        "--on_bad_row",
        choices=("error", "skip"),
        help="stop at an unusable row, or skip and count it (default: error)",
    )
    add("--skipped_file", help="JSON Lines file for skipped and cut rows (default: none)")


def _add_tokens(group: Any) -> None:
    add = group.add_argument
    add(
        "--max_length",
        type=int,
        help="longest sequence, prompt included (default: no limit; with a config or a method what "
        "the model can read)",
    )
    add(
        "--too_long",
        choices=("error", "skip", "truncate_end"),
        help="stop, skip and count, or cut the end of whole solutions, never a step or a prompt "
        "(default: error)",
    )
    add(
        "--string_prompts",
        choices=("raw", "chat"),
        help="plain prompts as they are, or put into the chat template (default: raw)",
    )
    add("--prompt_template", help='wraps plain prompts, as "Q: {prompt}" (default: {prompt})')
    add("--joiner", help="text between a plain prompt and the rest (default: nothing)")
    add("--system_prompt", help="system message before prompts read as chat (default: none)")
    add(
        "--chat_template",
        help='a Jinja template, a file that holds one, or "plain" (default: the tokenizer\'s own)',
    )
    add(
        "--chat_template_kwargs",
        help="extra variables of the chat template, as '{\"enable_thinking\": false}' "
        "(default: none)",
    )


def resolve(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `prefkit.cli.inspect.run` that the flags and the config ask for.

    Raises:
        ConfigError: no data or model, contradicting flags, or a config that cannot be read.
    """
    given = vars(arguments)
    data = list(given["data"])
    config = _read_config(data.pop(0)) if data[0].lower().endswith(_CONFIG_ENDINGS) else {}
    values = {**_defaults(), **config, **{k: v for k, v in given.items() if k in _OF_CONFIG}}
    values["mask_tool_output"] = _masks(given, values["mask_tool_output"])
    source = data or values["train_data"]
    if not source:
        raise ConfigError("The config has no train_data. Name the data after it.")
    if not values["model"]:
        raise ConfigError("No model is given, whose tokenizer makes the tokens. Add --model MODEL.")
    method = values["method"] if "method" in given or config else None
    limits = _model_limits(values["model"]) if method else {}
    if values["max_length"] is None:
        values["max_length"] = limits.get("max_position_embeddings")
    for name in ("chat_template_kwargs", "columns"):
        values[name] = _mapping(name, values[name])
    return {
        "source": source[0] if isinstance(source, list) and len(source) == 1 else source,
        "model": values["tokenizer"] or values["model"],
        "options": TokenizeOptions(**{name: values[name] for name in OPTIONS}),
        "method": method,
        "level": _resolved_level(values["level"], method),
        **{name: values[name] for name in READING},
        "split": given.get("split", config.get("train_split", "train")),
        "skipped_file": given.get("skipped_file"),
        "vocab_size": limits.get("vocab_size"),
        "limit": given.get("limit"),
        "as_json": given.get("json", False),
    }


def _defaults() -> dict[str, Any]:
    values = {**vars(PreferenceFields()), **vars(ScriptArguments())}
    return {name: values[name] for name in _OF_CONFIG}


def _read_config(path: str) -> dict[str, Any]:
    """What of a train config inspecting needs; the other keys need only exist."""
    from prefkit.options.parse import coerce, read_yaml, refuse_unknown
    from prefkit.train.config import PreferenceConfig  # imports transformers

    hints = {**typing.get_type_hints(PreferenceFields), **typing.get_type_hints(ScriptArguments)}
    known = [field.name for cls in (PreferenceConfig, ScriptArguments) for field in fields(cls)]
    values = {"method": PreferenceFields.method}
    for name, value in read_yaml(path).items():
        name = name.replace("-", "_")
        refuse_unknown(name, known, path)
        if name not in (*_OF_CONFIG, "train_split"):
            continue
        try:
            values[name] = coerce(name, value, hints[name])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return values


def _masks(given: Mapping[str, Any], value: bool | str) -> bool:
    masks = value if isinstance(value, bool) else value == "true"
    if not given.get("score_tool_output"):
        return masks
    if given.get("mask_tool_output") == "true":
        raise ConfigError(
            "--score_tool_output and --mask_tool_output true contradict each other. Keep one."
        )
    return False


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    from prefkit.options.parse import coerce

    return coerce(name, value, dict | None) or {}


def _resolved_level(level: str | None, method: str | None) -> str:
    """The level that training with the method reads at; a step where there is no method."""
    if method is None or level == "auto":
        return level or "step"
    from prefkit.train.config import PreferenceConfig

    return PreferenceConfig(method=method, level=level).resolved_level  # type: ignore[arg-type]


def _model_limits(model: str) -> dict[str, int]:
    """What training reads from the model's config; nothing for a folder with a tokenizer only."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    except Exception:  # training would stop here; the tokens can be shown all the same
        return {}
    names = ("max_position_embeddings", "vocab_size")
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}
