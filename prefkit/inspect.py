"""`prefkit inspect`: the tokens of every pair with their segment and weight, before any training.

The same code that prepares the training data prepares what is shown, so what is seen is what will
be scored. Only the tokenizer is loaded, never the model's weights.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefkit.data.dataset import PairDataset, prepare_pairs
from prefkit.data.render import Renderer, TokenizeOptions
from prefkit.data.view import TokenView, view_pair
from prefkit.errors import ModelError

SHOWN = 3  # pairs shown to people unless they ask for more
GREEN, RED, GREY = (0, 200, 0), (235, 60, 60), (110, 110, 110)


def run(
    source: Any,
    model: Any,
    *,
    options: TokenizeOptions | None = None,
    level: str = "step",
    mask_tool_output: bool = True,
    format: str = "auto",
    split: str = "train",
    block_style: str = "plain",
    on_bad_row: str = "error",
    skipped_file: str | None = None,
    limit: int | None = None,
    as_json: bool = False,
    stream: TextIO | None = None,
) -> int:
    """Show the tokens of the pairs of a source.

    Args:
        source, options, level, …, skipped_file: as for `prepare_pairs`.
        model: a model folder, hub name, or tokenizer.
        limit: pairs to show; None = all as JSON, three in colour.
        as_json: one JSON object a pair and line instead of colours: `{"pair": i, "tokens": [{"id",
            "text", "segment", "weight"}, …], "eos": {"chosen": bool, "rejected": bool}}`, the
            tokens of the chosen sequence first, then those of the rejected one.
        stream: where to write; None = standard output.

    Returns:
        The exit status, 0.

    Raises:
        PrefkitError: as `prepare_pairs`, or the tokenizer cannot be loaded.
    """
    options = options or TokenizeOptions()
    stream = stream or sys.stdout
    tokenizer = load_tokenizer(model) if isinstance(model, str | os.PathLike) else model
    dataset = prepare_pairs(
        source,
        tokenizer,
        options,
        level=level,
        mask_tool_output=mask_tool_output,
        format=format,
        split=split,
        block_style=block_style,
        on_bad_row=on_bad_row,  # type: ignore[arg-type]
        skipped_file=skipped_file,
        keep_text=True,
    )
    renderer = Renderer(tokenizer, options)
    if as_json:
        for index, sides in _views(dataset, renderer, limit):
            stream.write(json.dumps(_as_json(index, sides, dataset), ensure_ascii=False) + "\n")
        return 0
    console = Console(file=stream, highlight=False, soft_wrap=True)
    for index, sides in _views(dataset, renderer, SHOWN if limit is None else limit):
        _print_pair(console, index, sides, dataset)
    console.print(_summary_table(dataset))
    return 0


def load_tokenizer(model: str | os.PathLike[str]) -> Any:
    """The fast tokenizer of a model folder or hub name; code from the model is never run.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(os.fspath(model), trust_remote_code=False)
    except Exception as error:  # missing folder, no connection, broken file: one remedy
        raise ModelError(
            f"{model}: no tokenizer could be loaded ({type(error).__name__}: {error}). Give a "
            "model folder with tokenizer.json, or a hub name."
        ) from error


def _views(
    dataset: PairDataset, renderer: Renderer, limit: int | None
) -> Iterator[tuple[int, tuple[list[TokenView], list[TokenView]]]]:
    assert dataset.texts is not None
    for index, pair in enumerate(dataset.texts[:limit]):
        yield index, view_pair(pair, dataset.pairs[index], index, renderer)


def _as_json(
    index: int, sides: tuple[list[TokenView], list[TokenView]], dataset: PairDataset
) -> dict[str, Any]:
    pair = dataset.pairs[index]
    tokens = [
        {"id": view.id, "text": view.text, "segment": view.segment, "weight": view.weight}
        for side in sides
        for view in side
    ]
    return {
        "pair": index,
        "tokens": tokens,
        "eos": {"chosen": pair.chosen.eos, "rejected": pair.rejected.eos},
    }


def _print_pair(
    console: Console,
    index: int,
    sides: tuple[list[TokenView], list[TokenView]],
    dataset: PairDataset,
) -> None:
    pair = dataset.pairs[index]
    console.rule(Text(f"pair {index} · {pair.source}, row {pair.row}"), align="left")
    front = Text()
    for view in sides[0]:
        if view.part in ("prompt", "prefix"):
            front.append(view.text, style="dim" if view.part == "prompt" else "dim italic")
    console.print(front)
    for name, colour, side, views in (
        ("chosen", GREEN, pair.chosen, sides[0]),
        ("rejected", RED, pair.rejected, sides[1]),
    ):
        line = Text(f"{name} ({int(side.scored.sum())} scored tokens) ", style="bold")
        line.append_text(_coloured(views, colour))
        if not side.eos:
            line.append("  · no end token", style="dim")
        console.print(line)


def _coloured(views: list[TokenView], colour: tuple[int, int, int]) -> Text:
    """The response's tokens; the lower a weight is among its side's weights, the greyer."""
    text = Text()
    top = max((view.weight for view in views), default=0.0) or 1.0
    for view in views:
        if view.part in ("prompt", "prefix"):
            continue
        if view.segment < 0:
            style = "dim strike"
        else:
            share = view.weight / top
            mixed = (round(g + share * (c - g)) for g, c in zip(GREY, colour, strict=True))
            style = "rgb({},{},{})".format(*mixed)
        text.append(view.text, style=f"{style} reverse" if view.part == "end" else style)
    return text


def _summary_table(dataset: PairDataset) -> Table:
    report = dataset.report
    lengths = np.array([len(s.ids) for p in dataset.pairs for s in (p.chosen, p.rejected)])
    weighted = sum(
        int((s.scored & (s.weights != 1)).sum())
        for p in dataset.pairs
        for s in (p.chosen, p.rejected)
    )
    table = Table(show_header=False)
    for name, count in report.sources.items():
        table.add_row("rows", Text(f"{count} in {name}"))
    table.add_row("pairs", str(report.pairs))
    table.add_row("skipped", _counts(report.skipped) or "0")
    table.add_row("cut at the end", str(report.truncated))
    table.add_row(
        "tokens a sequence",
        f"{lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}",
    )
    table.add_row(
        "scored tokens", f"{report.scored['chosen']} chosen, {report.scored['rejected']} rejected"
    )
    table.add_row("weights other than 1", str(weighted))
    table.add_row("end tokens scored", f"{report.eos} of {2 * report.pairs} sequences")
    if report.unknown:
        table.add_row("unknown tokens", str(report.unknown), style="bold red")
    table.add_row("tokens in shared prefixes", f"{report.shared_fraction:.0%}")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `prefkit inspect`."""
    parser.add_argument("data", nargs="+", help="file, folder or hub name; several are joined")
    parser.add_argument("--model", required=True, help="model folder or hub name: its tokenizer")
    parser.add_argument("--json", action="store_true", help="one JSON object a pair")
    parser.add_argument("--limit", type=int, help="pairs to show")
    parser.add_argument("--split", default="train", help="split of a dataset with several")
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--level",
        choices=("auto", "step", "solution"),
        default="step",
        help="rows with a prefix end after one step (default), or run to the end of the solution",
    )
    reading.add_argument("--format", default="auto", help="row format; auto tells it by the fields")
    reading.add_argument("--block_style", default="plain", help="plain or tagged typed blocks")
    reading.add_argument(
        "--score_tool_output", action="store_true", help="score execution blocks as well"
    )
    reading.add_argument(
        "--on_bad_row",
        choices=("error", "skip"),
        default="error",
        help="stop at an unusable row (default), or skip and count it",
    )
    reading.add_argument("--skipped_file", help="JSON Lines file for skipped and cut rows")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument("--max_length", type=int, help="longest sequence, prompt included")
    tokens.add_argument(
        "--too_long",
        choices=("error", "skip", "truncate_end"),
        default="error",
        help="stop, skip and count, or cut the end of whole solutions (never a step or a prompt)",
    )
    tokens.add_argument(
        "--string_prompts",
        choices=("raw", "chat"),
        default="raw",
        help="plain prompts as they are (default), or put into the chat template",
    )
    tokens.add_argument(
        "--prompt_template", default="{prompt}", help='wraps plain prompts, as "Q: {prompt}"'
    )
    tokens.add_argument("--joiner", default="", help="text between a plain prompt and the rest")
    tokens.add_argument("--system_prompt", help="system message before plain prompts read as chat")
    tokens.add_argument("--chat_template", help='a Jinja template, or "plain"')


def run_arguments(arguments: argparse.Namespace) -> int:
    """Run with the flags of `add_arguments`; returns the exit status."""
    options = TokenizeOptions(
        max_length=arguments.max_length,
        too_long=arguments.too_long,
        string_prompts=arguments.string_prompts,
        prompt_template=arguments.prompt_template,
        joiner=arguments.joiner,
        system_prompt=arguments.system_prompt,
        chat_template=arguments.chat_template,
    )
    return run(
        arguments.data if len(arguments.data) > 1 else arguments.data[0],
        arguments.model,
        options=options,
        level=arguments.level,
        mask_tool_output=not arguments.score_tool_output,
        format=arguments.format,
        split=arguments.split,
        block_style=arguments.block_style,
        on_bad_row=arguments.on_bad_row,
        skipped_file=arguments.skipped_file,
        limit=arguments.limit,
        as_json=arguments.json,
    )
