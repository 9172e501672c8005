"""Pairs and questions as JSON objects, described in `prefkit inspect --help`."""

from collections.abc import Sequence
from typing import Any

from prefkit.data.pair import TokenizedPair
from prefkit.data.view import QuestionView, TokenView


def pair_object(
    index: int, sides: tuple[list[TokenView], list[TokenView]], pair: TokenizedPair
) -> dict[str, Any]:
    """One pair: the tokens of the chosen sequence, then those of the rejected one."""
    tokens = [
        {"id": view.id, "text": view.text, "segment": view.segment, "weight": view.weight}
        for side in sides
        for view in side
    ]
    return {"pair": index, "tokens": tokens, **_of_pair(pair)}


def question_object(view: QuestionView, pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    """One question: its pairs, and the nodes of their tree."""
    nodes = [
        {
            "parent": node.parent,
            "before": node.before,
            "pieces": [
                {
                    "tokens": [
                        {"id": i, "text": text}
                        for i, text in zip(piece.ids, piece.texts, strict=True)
                    ],
                    "scored": [
                        {"pair": use.pair, "side": use.side, "weights": list(use.weights)}
                        for use in piece.uses
                    ],
                }
                for piece in node.pieces
            ],
            "ends": [{"pair": pair, "side": side} for pair, side in node.ends],
        }
        for node in view.nodes
    ]
    return {
        "pairs": [
            {"pair": place, "source": pair.source, "row": pair.row, **_of_pair(pair)}
            for place, pair in zip(view.places, pairs, strict=True)
        ],
        "nodes": nodes,
        "tokens": {"separate": view.separate, "shared": view.shared, "tree": view.tree},
    }


def _of_pair(pair: TokenizedPair) -> dict[str, Any]:
    eos = {"chosen": pair.chosen.eos, "rejected": pair.rejected.eos}
    return {"eos": eos, **({} if pair.margin is None else {"margin": pair.margin})}
