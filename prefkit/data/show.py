"""The tokens of every pair with their segment and weight, before any training.

The same code that prepares the training data prepares what is shown, so what is seen is what will
be scored. Only the tokenizer is loaded, never the model's weights.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefkit.data.dataset import PairDataset, prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.report import two_forms
from prefkit.data.text.render import Renderer, TokenizeOptions
from prefkit.data.view import TokenView, view_pair
from prefkit.errors import ConfigError, ModelError

SHOWN = 3  # pairs shown to people unless they ask for more
COLOUR_LEGEND = (
    "prompt and prefix dim; scored green (chosen) or red (rejected), greyer the lower its weight; "
    "struck through = context, not scored; reversed = end token"
)
PLAIN_LEGEND = (
    "⟦scored⟧, ⟦scored⟧×0.3 = weight 0.3; outside the brackets = context, not scored (tool output)"
)
GREEN, RED, GREY = (0, 200, 0), (235, 60, 60), (110, 110, 110)


def show_pairs(
    source: Any,
    model: Any,
    options: TokenizeOptions | None = None,
    reading: ReadOptions | None = None,
    *,
    method: str | None = None,
    limit: int | None = None,
    as_json: bool = False,
    stream: TextIO | None = None,
    **source_options: Any,
) -> int:
    """Shows the tokens of the pairs of a source.

    Args:
        source, options, reading: as for `prepare_pairs`.
        model: a model folder, hub name, or tokenizer.
        method: the training method the level was taken from; only named in the summary.
        limit: pairs to show, 0 or more; None = all as JSON, three in colour.
        as_json: one JSON object a pair and line instead of colours: `{"pair": i, "tokens": [{"id",
            "text", "segment", "weight"}, …], "eos": {"chosen": bool, "rejected": bool}}`, the
            tokens of the chosen sequence first, then those of the rejected one.
        stream: where to write; None = standard output.
        source_options: further arguments of `prepare_pairs`: split, vocab_size.

    Returns:
        The exit status, 0.

    Raises:
        PrefkitError: as `prepare_pairs`, a negative limit, or the tokenizer cannot be loaded.
    """
    if limit is not None and limit < 0:
        raise ConfigError(f"limit is {limit}. Give 0 pairs or more, or leave it out.")
    options, reading = options or TokenizeOptions(), reading or ReadOptions()
    stream = stream or sys.stdout
    tokenizer = load_tokenizer(model) if isinstance(model, str | os.PathLike) else model
    dataset = prepare_pairs(source, tokenizer, options, reading, keep_text=True, **source_options)
    renderer = Renderer(tokenizer, options)
    if as_json:
        for index, sides in _views(dataset, renderer, limit):
            stream.write(json.dumps(_as_json(index, sides, dataset), ensure_ascii=False) + "\n")
        return 0
    console = Console(file=stream, highlight=False, soft_wrap=True)
    legend = PLAIN_LEGEND if _is_plain(console) else COLOUR_LEGEND
    console.print(Text(legend, style="italic"))
    for index, sides in _views(dataset, renderer, SHOWN if limit is None else limit):
        _print_pair(console, index, sides, dataset)
    read_as = {"level": reading.level, "method": method, "string prompts": options.string_prompts}
    console.print(_summary_table(dataset, read_as))
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
        **({} if pair.margin is None else {"margin": pair.margin}),
    }


def _print_pair(
    console: Console,
    index: int,
    sides: tuple[list[TokenView], list[TokenView]],
    dataset: PairDataset,
) -> None:
    pair = dataset.pairs[index]
    margin = "" if pair.margin is None else f" · margin {pair.margin:g}"
    console.rule(Text(f"pair {index} · {pair.source}, row {pair.row}{margin}"), align="left")
    front = Text()
    for view in sides[0]:
        if view.part in ("prompt", "prefix"):
            front.append(view.text, style="dim" if view.part == "prompt" else "dim italic")
    console.print(front)
    for name, colour, side, views in (
        ("chosen", GREEN, pair.chosen, sides[0]),
        ("rejected", RED, pair.rejected, sides[1]),
    ):
        zeros = int((side.weights[side.scored] == 0).sum())
        counts = f"{int(side.scored.sum())} scored tokens" + (
            f", {zeros} of weight 0" * bool(zeros)
        )
        line = Text(f"{name} ({counts}) ", style="bold")
        line.append_text(_marked(views) if _is_plain(console) else _coloured(views, colour))
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


def _is_plain(console: Console) -> bool:
    """A pipe, a CI log or NO_COLOR: marks have to say what colours would."""
    return console.no_color or console.color_system is None


def _marked(views: list[TokenView]) -> Text:
    """The response's tokens; runs of scored ones of one weight in brackets, with the weight."""
    response = [view for view in views if view.part not in ("prompt", "prefix")]
    text = Text()
    for (scored, weight), run_of in groupby(response, lambda v: (v.segment >= 0, v.weight)):
        run_text = "".join(view.text for view in run_of)
        if scored:
            run_text = f"⟦{run_text}⟧" + ("" if weight == 1 else f"×{weight:.3g}")
        text.append(run_text)
    return text


def _summary_table(dataset: PairDataset, read_as: dict[str, str | None]) -> Table:
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
    read = (f"{name} {value}" for name, value in read_as.items() if value is not None)
    table.add_row("read with", "\n".join(read))
    table.add_row("pairs", str(report.pairs))
    for line in two_forms(report.chats, report.pairs, "pairs"):
        table.add_row("two forms", line, style="bold")
    table.add_row("skipped", _counts(report.skipped) or "0")
    table.add_row("cut at the end", str(report.truncated))
    table.add_row(
        "tokens a sequence",
        f"{lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}",
    )
    table.add_row(
        "scored tokens", f"{report.scored['chosen']} chosen, {report.scored['rejected']} rejected"
    )
    table.add_row("of these with weight 0", str(report.zero_weight))
    table.add_row("weights other than 1", f"{weighted} tokens in {report.weighted_rows} pairs")
    table.add_row("end tokens scored", f"{report.eos} of {2 * report.pairs} sequences")
    if report.unknown:
        table.add_row("unknown tokens", str(report.unknown), style="bold red")
    table.add_row("tokens in shared prefixes", f"{report.shared_fraction:.0%}")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())
