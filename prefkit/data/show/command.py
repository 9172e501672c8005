"""`show_pairs`: what a source holds, for people or as JSON, by pairs or by questions."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.text import Text

from prefkit.data.batch.collators import by_question
from prefkit.data.dataset import PairDataset, prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.show.json_lines import pair_object, question_object
from prefkit.data.show.pairs import COLOUR_LEGEND, PLAIN_LEGEND, is_plain, print_pair
from prefkit.data.show.summary import summary_table
from prefkit.data.show.trees import TREE_LEGEND, print_tree
from prefkit.data.text.render import Renderer, TokenizeOptions
from prefkit.data.view import QuestionView, TokenView, view_pair, view_question
from prefkit.errors import ConfigError, ModelError

View = Literal["auto", "tree", "pairs"]
SHOWN = 3  # pairs shown to people unless they ask for more


def show_pairs(
    source: Any,
    model: Any,
    options: TokenizeOptions | None = None,
    reading: ReadOptions | None = None,
    *,
    method: str | None = None,
    limit: int | None = None,
    pair: int | None = None,
    view: View = "auto",
    as_json: bool = False,
    stream: TextIO | None = None,
    **source_options: Any,
) -> int:
    """Shows the tokens of the pairs of a source.

    Args:
        source, options, reading: as for `prepare_pairs`.
        model: a model folder, hub name, or tokenizer.
        method: the training method the level was taken from; only named in the summary.
        limit: pairs to show, 0 or more; None = all as JSON or of a named question, else three.
        pair: only the pair at this place among all pairs, from 0; in trees its whole question.
        view: "pairs" shows pair by pair, "tree" the pairs of a question as a tree; "auto" is "tree"
            for people where several of a question are shown, and else "pairs".
        as_json: one JSON object a pair or question and line (`prefkit.data.show.json_lines`).
        stream: where to write; None = standard output.
        source_options: further arguments of `prepare_pairs`: split, vocab_size.

    Returns:
        The exit status, 0.

    Raises:
        PrefkitError: as `prepare_pairs`, a negative limit, no such pair, or the tokenizer cannot be
            loaded.
    """
    if limit is not None and limit < 0:
        raise ConfigError(f"limit is {limit}. Give 0 pairs or more, or leave it out.")
    options, reading = options or TokenizeOptions(), reading or ReadOptions()
    stream = stream or sys.stdout
    tokenizer = load_tokenizer(model) if isinstance(model, str | os.PathLike) else model
    dataset = prepare_pairs(source, tokenizer, options, reading, keep_text=True, **source_options)
    if limit is None and pair is None and not as_json:
        limit = SHOWN
    shown = Shown(dataset, Renderer(tokenizer, options), _places(dataset, pair, limit, view))
    if as_json:
        for line in shown.as_questions() if view == "tree" else shown.as_pairs():
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        return 0
    console = Console(file=stream, highlight=False, soft_wrap=True)
    shown.print(console, view)
    read_as = {"level": reading.level, "method": method, "string prompts": options.string_prompts}
    console.print(summary_table(dataset, read_as))
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


def _places(dataset: PairDataset, pair: int | None, limit: int | None, view: View) -> list[int]:
    """The pairs that are shown."""
    count = len(dataset)
    if pair is None:
        return list(range(count))[:limit]
    if not 0 <= pair < count:
        raise ConfigError(f"pair is {pair}, and there are {count} pairs. Give 0 to {count - 1}.")
    question = dataset.pairs[pair].question
    if view == "pairs" or question is None:
        return [pair][:limit]
    return [i for i, one in enumerate(dataset.pairs) if one.question == question][:limit]


class Shown:
    """Some pairs of a data set.

    Args:
        dataset: with its texts.
        renderer: that made it.
        places: of the pairs.
    """

    def __init__(self, dataset: PairDataset, renderer: Renderer, places: list[int]) -> None:
        self.dataset, self.renderer, self.places = dataset, renderer, places

    def as_pairs(self) -> Iterator[dict[str, Any]]:
        """Each pair as a JSON object."""
        for place in self.places:
            yield pair_object(place, self._tokens(place), self.dataset.pairs[place])

    def as_questions(self) -> Iterator[dict[str, Any]]:
        """Each question as a JSON object."""
        for group in self._questions():
            yield question_object(self._tree(group), [self.dataset.pairs[i] for i in group])

    def print(self, console: Console, view: View) -> None:
        """All of them for people, behind the legend."""
        groups = [[place] for place in self.places] if view == "pairs" else self._questions()
        trees = [group for group in groups if view == "tree" or len(group) > 1]
        legend = PLAIN_LEGEND if is_plain(console) else COLOUR_LEGEND
        console.print(Text(legend, style="italic"))
        if trees:
            console.print(Text(TREE_LEGEND, style="italic"), soft_wrap=False)
        for group in groups:
            if group not in trees:
                print_pair(console, group[0], self._tokens(group[0]), self.dataset)
                continue
            pairs = [self.dataset.pairs[place] for place in group]
            question = pairs[0].question
            same = sum(one.question == question for one in self.dataset.pairs)
            print_tree(console, self._tree(group), pairs, same if question is not None else 1)

    def _questions(self) -> list[list[int]]:
        groups = by_question([self.dataset.pairs[place] for place in self.places])
        return [[self.places[k] for k in group] for group in groups]

    def _tokens(self, place: int) -> tuple[list[TokenView], list[TokenView]]:
        assert self.dataset.texts is not None
        return view_pair(self.dataset.texts[place], self.dataset.pairs[place], place, self.renderer)

    def _tree(self, group: Sequence[int]) -> QuestionView:
        pairs = [self.dataset.pairs[place] for place in group]
        views = [self._tokens(place) for place in group]
        name_of = self.renderer.tokenizer.convert_ids_to_tokens
        return view_question(group, pairs, views, name_of)
