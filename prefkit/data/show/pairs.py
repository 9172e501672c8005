"""A pair as people read it: its front, and both responses with what is scored of them."""

from itertools import groupby

from rich.console import Console
from rich.text import Text

from prefkit.data.dataset import PairDataset
from prefkit.data.view import TokenView

COLOUR_LEGEND = (
    "prompt and prefix dim; scored green (chosen) or red (rejected), greyer the lower its weight; "
    "struck through = context, not scored; reversed = end token"
)
PLAIN_LEGEND = (
    "⟦scored⟧, ⟦scored⟧×0.3 = weight 0.3; outside the brackets = context, not scored (tool output)"
)
GREEN, RED, GREY = (0, 200, 0), (235, 60, 60), (110, 110, 110)


def print_pair(
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
        if not side.scored.any():
            console.print(Text(f"no {name} response", style="dim"))
            continue
        zeros = int((side.weights[side.scored] == 0).sum())
        counts = f"{int(side.scored.sum())} scored tokens" + (
            f", {zeros} of weight 0" * bool(zeros)
        )
        line = Text(f"{name} ({counts}) ", style="bold")
        line.append_text(_marked(views) if is_plain(console) else _coloured(views, colour))
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


def is_plain(console: Console) -> bool:
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
