"""`prefkit inspect`: its flags, and a train config in their place; shown by `prefkit.data.show`.

A flag wins over the config, the config over the defaults, which are those of training; only the
level of rows without a method is a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefkit.cli import train
from prefkit.cli.config_file import read_config
from prefkit.errors import ConfigError
from prefkit.loss.objectives import METHODS, check_method_reads
from prefkit.options.check import check_options
from prefkit.options.command import Command
from prefkit.options.option import option
from prefkit.options.parse import read_flags, split
from prefkit.options.prompt import ReadingFields, TextFields
from prefkit.options.values import coerce

_TAIL = """\
what is shown:
  A config shows what `prefkit train CONFIG.yaml` scores; DATA alone shows single steps of rows that
  have a prefix, unless --level or --method says otherwise. In colour: prompt and prefix dim, scored
  tokens green (chosen) or red (rejected), greyer the lower their weight, context struck through.
  Without colour: ⟦scored⟧, ⟦scored⟧×0.3 for another weight than 1, the rest is context.
  Several pairs of a question are a tree, in which each token stands once, with the pairs that score
  it: green as chosen, red as rejected, yellow as both. --view pairs shows them one by one.

--json, one object a pair and line:
  {"pair": i, "tokens": [{"id": …, "text": …, "segment": …, "weight": …}, …],
   "eos": {"chosen": true|false, "rejected": true|false}}
  pair     place of the pair among all pairs, from 0
  tokens   the whole chosen sequence (prompt, prefix, response), then the whole rejected one
  segment  2i for a scored token of pair i's chosen side, 2i+1 for one of its rejected side, -1 for
           a token that is only context
  weight   what the token's log-probability counts; 0 for context, and for a token weighted 0
  eos      whether the side ends with a scored end-of-sequence token
  margin   the row's own, where the config reads it (margin_weight)

--json --view tree, one object a question and line:
  {"pairs": [{"pair": i, "source": …, "row": …, "eos": …}, …],
   "nodes": [{"parent": …, "before": …, "pieces": [{"tokens": [{"id": …, "text": …}, …],
              "scored": [{"pair": i, "side": …, "weights": […]}, …]}, …], "ends": […]}, …],
   "tokens": {"separate": …, "shared": …, "tree": …}}
  parent   place of the node that this one continues, -1 for none; parents come first
  before   tokens from the root to the node
  scored   the sides that score the tokens of a piece, with their weights; [] is context
  ends     {"pair": i, "side": …} of the sequences that end with the node
  tokens   that the model reads of these pairs in each layout
"""


@dataclass(kw_only=True)
class InspectOptions(ReadingFields, TextFields):
    """What is shown, and read how."""

    # -- inspect --------------------------------------------------------------------------------
    model: str | None = None
    """Model folder or hub name, whose tokenizer is used; None = the config's."""
    json: bool = False
    """One JSON object a pair, in place of text for people."""
    limit: int | None = None
    """Pairs to show; None = all as JSON or with --pair, else 3."""
    pair: int | None = None
    """Show this pair alone (its place among all pairs, from 0), or its whole question as a tree."""
    view: Literal["auto", "tree", "pairs"] = "auto"
    """pairs: one after the other. tree: the pairs of a question as a tree of all their common
    prefixes. auto = tree where several pairs of a question are shown, pairs in JSON."""
    split: str = "train"
    """Split of a dataset with several."""
    skipped_file: str | None = None
    """JSON Lines file for skipped and cut rows; None = nowhere."""

    # -- data -----------------------------------------------------------------------------------
    method: str | None = option(None, choices=tuple(METHODS))
    """Read as this training method does; None = as none of them."""
    level: Literal["auto", "step", "solution"] | None = None
    """Rows with a prefix end after one step, or run to the end of the solution; auto asks rows that
    leave it open. None = the method's level, a step without a method."""
    score_tool_output: bool = False
    """The same as --mask_tool_output false."""
    max_length: int | None = None
    """Longest sequence, prompt included; None = no limit, and with a config or a method what the
    model can read."""


_ABOUT = """\
The tokens of every pair with their segment and weight, before any training.

The same code that prepares the training data prepares what is shown, so what is seen is what will
be scored. Only the tokenizer is loaded, never the model's weights.
"""
COMMAND = Command(
    name="inspect",
    line=("PAIRS --model M [--json]", "show which tokens are scored, with what weight"),
    about=_ABOUT,
    words=(
        "DATA",
        "File, folder or hub name; several are joined. A first one ending in .yaml or .yml is a "
        "train config, whose train_data are shown where no other data follow.",
    ),
    options=(InspectOptions,),
    without=frozenset({"pad_to_multiple_of"}),
    tail=_TAIL,
)
_CONFIG_ENDINGS = (".yaml", ".yml")


def run(argv: Sequence[str]) -> int:
    """Shows the pairs that a command line names; returns the exit status.

    Raises:
        PrefkitError: no data or model, contradicting flags, or what cannot be read.
    """
    words, flags = split(COMMAND, argv)
    if not words:
        raise ConfigError("inspect: name the data: a file, a dataset or a train config.")
    given = read_flags(COMMAND, flags)
    config = _read_config(words.pop(0)) if words[0].lower().endswith(_CONFIG_ENDINGS) else {}
    from_config = {name: value for name, value in config.items() if name in COMMAND.fields}
    check_method_reads(config.get("method", "dpo"), config)
    options = InspectOptions(**{**from_config, **given})
    check_options(options)
    source = words or config.get("train_data")
    if not source:
        raise ConfigError("The config has no train_data. Name the data after it.")
    if not options.model:
        raise ConfigError("No model is given, whose tokenizer makes the tokens. Add --model MODEL.")
    from prefkit.data.formats.detect import ReadOptions
    from prefkit.data.show import show_pairs
    from prefkit.data.text.render import TokenizeOptions

    limits = _model_limits(options.model) if options.method else {}
    if options.max_length is None:
        options.max_length = limits.get("max_position_embeddings")
    for name in ("chat_template_kwargs", "columns"):
        setattr(options, name, coerce(name, getattr(options, name), dict | None) or {})
    return show_pairs(
        source[0] if isinstance(source, list) and len(source) == 1 else source,
        config.get("tokenizer") or _with_tokenizer(options.model),
        TokenizeOptions.of(options),
        ReadOptions.of(
            options,
            level=_resolved_level(options.level, options.method),
            mask_tool_output=_masks(given, options.mask_tool_output),
            skipped_file=options.skipped_file,
            margins=bool(config) and METHODS[config["method"]].build(config).needs_margins,
            unpaired=METHODS[options.method or "dpo"].build({}).mean_over == "sides",
        ),
        method=options.method,
        limit=options.limit,
        pair=options.pair,
        view=options.view,
        as_json=options.json,
        split=options.split,
        vocab_size=limits.get("vocab_size"),
    )


def _read_config(path: str) -> dict[str, Any]:
    """A train config, of prefkit or another trainer; without a method it trains dpo."""
    found = {"method": "dpo", **read_config(train.whole(train.COMMAND), path)}
    if "train_split" in found:
        found["split"] = found["train_split"]
    return found


def _masks(given: Mapping[str, Any], value: bool) -> bool:
    if not given.get("score_tool_output"):
        return value
    if given.get("mask_tool_output"):
        raise ConfigError(
            "--score_tool_output and --mask_tool_output true contradict each other. Keep one."
        )
    return False


def _resolved_level(level: str | None, method: str | None) -> str:
    """The level that training with the method reads at; a step where there is no method."""
    if method is None or level == "auto":
        return level or "step"
    from prefkit.train.config import PreferenceConfig

    return PreferenceConfig(method=method, level=level).resolved_level  # type: ignore[arg-type]


def _with_tokenizer(model: str) -> str:
    """Where a model's tokenizer is: an adapter without one has its base model's."""
    from prefkit.model.loading import base_of

    has_one = (Path(model).expanduser() / "tokenizer_config.json").is_file()
    return model if has_one else base_of(model) or model


def _model_limits(model: str) -> dict[str, int]:
    """What training reads from the model's config; nothing for a folder with a tokenizer only."""
    from transformers import AutoConfig

    from prefkit.model.loading import base_of, base_revision, positions_of

    try:
        config = AutoConfig.from_pretrained(
            base_of(model) or model, revision=base_revision(model), trust_remote_code=False
        )
        config = config.get_text_config()
    except Exception:  # training would stop here; the tokens can be shown all the same
        return {}
    found = {
        "max_position_embeddings": positions_of(config),
        "vocab_size": getattr(config, "vocab_size", None),
    }
    return {name: value for name, value in found.items() if value is not None}
