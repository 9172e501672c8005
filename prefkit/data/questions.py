"""Which rows are of one question where their prompts differ: steps that were written into them.

Rows with the same prompt are of one question (`TokenizedPair.question`). Other trainers' step data
has no field for the steps before: a later row's prompt is an earlier one's, continued. By their
token ids such rows hang on one tree, so they are made one question.
"""

from collections.abc import Sequence
from dataclasses import replace

from prefkit.data.pair import TokenizedPair

LEAST = 8  # tokens of a prompt that others may continue: fewer are a template's first words
MOST = 8  # different prompts right behind one: more continue an instruction that all rows have


def joined(pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
    """The pairs, with one question where the prompt of one continues that of another.

    Args:
        pairs: of a whole data set. What both sides share counts as a pair's prompt.
    """
    fronts = [pair.chosen.ids[: pair.shared].astype(">i4").tobytes() for pair in pairs]
    root: dict[int, int] = {}  # of questions: the one they were made one with

    def find(question: int) -> int:
        while question in root:
            question = root[question]
        return question

    path: list[int] = []  # each the beginning of the next
    below: dict[int, set[int]] = {}  # by question: those whose prompts continue its own next
    for index in sorted(range(len(pairs)), key=fronts.__getitem__):
        question = pairs[index].question
        while path and not fronts[index].startswith(fronts[path[-1]]):
            path.pop()
        if question is None or pairs[index].shared < LEAST:
            continue
        if path and (above := pairs[path[-1]].question) is not None and above != question:
            below.setdefault(above, set()).add(question)
        path.append(index)
    for above, questions in below.items():
        for question in questions if len(questions) <= MOST else ():
            one, other = find(above), find(question)
            if one != other:
                root[other] = one
    if not root:
        return list(pairs)
    return [
        pair if pair.question is None else replace(pair, question=find(pair.question))
        for pair in pairs
    ]
