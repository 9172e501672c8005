"""A question of several pairs as a tree: each token once, and below it who scores it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from prefkit.data.pair import TokenizedPair
from prefkit.data.show.pairs import GREEN, GREY, RED, is_plain
from prefkit.data.view.tree import Piece, QuestionView, Use

TREE_LEGEND = (
    "Several pairs of a question are a tree: each token once, and the pairs that score it. "
    "⏎ = line break. --view pairs shows pair by pair."
)
BOTH = (205, 165, 0)  # yellow: what one pair chooses and another rejects
_GUIDE = 4  # columns of a level
_LEAST = 24  # columns that a text is given, however narrow the terminal
_CONTROL = {code: chr(0x2400 + code) for code in range(32)} | {127: "␡", 10: "⏎", 9: "⇥"}


def print_tree(
    console: Console, view: QuestionView, pairs: Sequence[TokenizedPair], of_question: int
) -> None:
    """One question.

    Args:
        console: where to; a text longer than its width is shortened in the middle.
        view: of `view_question`.
        pairs: of the view.
        of_question: pairs that the question has in all data.
    """
    console.rule(Text(_title(view, pairs)), align="left")
    Drawing(console, view).print()
    console.print(Text(_sizes(view), style="bold"), soft_wrap=False)
    if len(pairs) < of_question:
        shown = f"{len(pairs)} of the question's {of_question} pairs are shown. "
        more = f"--pair {view.places[0]} shows all of them."
        console.print(Text(shown + more, style="italic"), soft_wrap=False)


def _title(view: QuestionView, pairs: Sequence[TokenizedPair]) -> str:
    rows: dict[str, list[int]] = defaultdict(list)
    for pair in pairs:
        rows[pair.source].append(pair.row)
    named = "; ".join(f"{source}, {_named('row', of)}" for source, of in rows.items())
    margins = zip(view.places, (pair.margin for pair in pairs), strict=True)
    said = ", ".join(f"{size:g} of pair {place}" for place, size in margins if size is not None)
    return f"{_named('pair', view.places)} · {named}" + (f" · margins {said}" if said else "")


def _sizes(view: QuestionView) -> str:
    count = len(view.places)
    pairs = f"{count} pairs" if count > 1 else "1 pair"
    return (
        f"{pairs}: {view.separate:,} tokens as separate sequences, {view.shared:,} as shared pairs,"
        f" {view.tree:,} as one tree: {view.separate / view.tree:.2f} and "
        f"{view.shared / view.tree:.2f} times fewer"
    )


class Drawing:
    """The lines of one tree.

    A tree deeper than half the width goes on below, at the left again, from the node named there.
    """

    def __init__(self, console: Console, view: QuestionView) -> None:
        self.console, self.nodes, self.plain = console, view.nodes, is_plain(console)
        self.deepest = max(1, console.width // (2 * _GUIDE))
        weights = (w for node in view.nodes for p in node.pieces for u in p.uses for w in u.weights)
        self.top = max(weights, default=0.0) or 1.0
        self.children: dict[int, list[int]] = defaultdict(list)
        for place, node in enumerate(view.nodes):
            self.children[node.parent].append(place)
        self.later: list[int] = []

    def print(self) -> None:
        """All of it."""
        for root in self.children[-1]:
            self.console.print(self._grown(root, 0), soft_wrap=False)
        for place in self.later:  # grows while it is printed
            node = self.nodes[place]
            tree = Tree(f"behind node {place} ({node.before + node.tokens:,} tokens)")
            for child in self.children[place]:
                tree.children.append(self._grown(child, 1))
            self.console.print(tree, soft_wrap=False)

    def _grown(self, place: int, level: int) -> Tree:
        node, below = self.nodes[place], self.children[place]
        lines = [line for piece in node.pieces for line in self._lines(piece, level)]
        tree = Tree(Group(*lines), guide_style="dim")
        if below and level >= self.deepest:
            lines.append(Text(f"node {place} goes on below", style="italic"))
            tree.label = Group(*lines)
            self.later.append(place)
            return tree
        for child in below:
            tree.children.append(self._grown(child, level + 1))
        return tree

    def _lines(self, piece: Piece, level: int) -> list[Text]:
        """One line where everything fits, else the shortened text and what is said of it."""
        room = max(_LEAST, self.console.width - _GUIDE * level)
        count = len(piece.ids)
        tokens = Text(f" · {count:,} token{'s' * (count != 1)}", style="dim")
        said = Text(_of_uses(piece.uses) if piece.uses else "context", style="dim")
        text, marks = self._text(piece), Text("⟦⟧" if piece.uses and self.plain else "")
        whole = Text.assemble(marks[:1], text, marks[1:], tokens, Text(" · ", style="dim"), said)
        if whole.cell_len <= room:
            return [whole]
        text = shortened(text, room - tokens.cell_len - marks.cell_len)
        return [Text.assemble(marks[:1], text, marks[1:], tokens), said]

    def _text(self, piece: Piece) -> Text:
        styles = ["dim"] * len(piece.ids)
        if piece.uses:
            styles = [self._style(piece.uses, k) for k in range(len(piece.ids))]
        if piece.ending:
            styles[-1] += " reverse"
        text = Text()
        tokens = zip(styles, piece.texts, strict=True)
        for style, run in groupby(tokens, lambda token: token[0]):
            text.append("".join(of for _, of in run).translate(_CONTROL), style=style)
        return text

    def _style(self, uses: Sequence[Use], k: int) -> str:
        """By side; the lower the highest of a token's weights, the greyer."""
        sides = {use.side for use in uses}
        colour = BOTH if len(sides) > 1 else GREEN if "chosen" in sides else RED
        share = max(use.weights[k] for use in uses) / self.top
        mixed = (round(grey + share * (c - grey)) for grey, c in zip(GREY, colour, strict=True))
        return "rgb({},{},{})".format(*mixed)


def shortened(text: Text, room: int) -> Text:
    """A text of at most so many columns: what is too much is left out in the middle, as "…"."""
    if text.cell_len <= room:
        return text
    plain, head, tail = text.plain, 0, len(text)
    widths = [0, 0]  # columns that each end has so far
    while head < tail:  # from the end that has fewer
        from_head = widths[0] <= widths[1]
        width = cell_len(plain[head] if from_head else plain[tail - 1])
        if sum(widths) + width > max(0, room - 1):
            break
        widths[0 if from_head else 1] += width
        head, tail = (head + 1, tail) if from_head else (head, tail - 1)
    return Text.assemble(text[:head], "…", text[tail:])


def _of_uses(uses: Sequence[Use]) -> str:
    """Who scores a piece: `pair 3 chosen · pairs 4-6 rejected ×0.3`."""
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for use in uses:
        alike[use.side, _weights(use.weights)].append(use.pair)
    return " · ".join(f"{_named('pair', of)} {side}{how}" for (side, how), of in alike.items())


def _weights(weights: Sequence[float]) -> str:
    low, high = min(weights), max(weights)
    if low == high:
        return "" if low == 1 else f" ×{low:.3g}"
    return f" ×{low:.3g} to {high:.3g}"


def _named(what: str, numbers: Iterable[int]) -> str:
    """`pair 3`, or `pairs 0-2, 5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    named = ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{what}{'s' * (sum(map(len, runs)) > 1)} {named}"
