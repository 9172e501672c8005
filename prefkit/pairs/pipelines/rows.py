"""Rows of pairs in the project's schema; steps are kept as lists beside the texts.

id, prompt, answer                       the question
prefix, prefix_steps                     correct steps that both sides share
chosen, rejected                         what is trained: a step, or all that follows
full_chosen, full_rejected               all that follows, where chosen is one step
chosen_steps, rejected_steps             all that follows, step by step
rejected, rejected_steps                 lists of the above, in a row of several wrong solutions
append_eos                               only where chosen follows a prefix to the end
"""

from collections.abc import Sequence
from typing import Any

from prefkit.pairs.code.blocks import split_blocks
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Attempt
from prefkit.pairs.questions import Question

Row = dict[str, Any]


def whole_row(question: Question, context: Context, right: Attempt, wrong: Attempt) -> Row:
    """A pair of whole solutions."""
    name = f"{right.number}-{wrong.number}"
    if context.interpreter is not None:
        return _message_row(question, context, name, (), right.steps, wrong.steps)
    return {
        "id": f"{question.id}-{name}",
        "prompt": question.prompt_field,
        "chosen": right.text,
        "rejected": wrong.text,
        "answer": question.answer,
        "chosen_steps": list(right.steps),
        "rejected_steps": list(wrong.steps),
    }


def row_of_several(
    question: Question, context: Context, right: Attempt, wrong: Sequence[Attempt]
) -> Row:
    """A right solution and wrong ones: `rejected` and `rejected_steps` have an entry for each."""
    rows = [whole_row(question, context, right, one) for one in wrong]
    lists = {name: [row[name] for row in rows] for name in ("rejected", "rejected_steps")}
    return {**rows[0], "id": f"{question.id}-{right.number}", **lists}


def step_row(
    question: Question,
    *,
    name: str,
    prefix: str,
    prefix_steps: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
) -> Row:
    """A pair of single steps after correct ones, with both continuations (Step-DPO).

    Args:
        prefix: what precedes; it may end with the label of the step ("Step 3:").
        chosen, rejected: the steps that follow the prefix, to the end; the first is the pair's.
    """
    return {
        "id": f"{question.id}-{name}",
        "prompt": question.prompt_field,
        "prefix": prefix,
        "chosen": chosen[0],
        "rejected": rejected[0],
        "full_chosen": "".join(chosen),
        "full_rejected": "".join(rejected),
        "answer": question.answer,
        "prefix_steps": list(prefix_steps),
        "chosen_steps": list(chosen),
        "rejected_steps": list(rejected),
    }


def continuation_row(
    question: Question,
    context: Context,
    *,
    name: str,
    prefix_steps: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
) -> Row:
    """A pair of continuations, to the end, of the same correct steps (SCDPO)."""
    if context.interpreter is not None:
        return _message_row(question, context, name, prefix_steps, chosen, rejected)
    return {
        "id": f"{question.id}-{name}",
        "prompt": question.prompt_field,
        "prefix": "".join(prefix_steps),
        "chosen": "".join(chosen),
        "rejected": "".join(rejected),
        "append_eos": True,
        "answer": question.answer,
        "prefix_steps": list(prefix_steps),
        "chosen_steps": list(chosen),
        "rejected_steps": list(rejected),
    }


def _message_row(
    question: Question,
    context: Context,
    name: str,
    prefix: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
) -> Row:
    """Both responses as messages: question, correct steps as `assistant_correct`, the rest."""
    messages = context.messages(question)
    if prefix:
        messages.append({"role": "assistant_correct", "content": split_blocks("".join(prefix))})
    sides = {
        side: [*messages, {"role": "assistant", "content": split_blocks("".join(steps))}]
        for side, steps in (("chosen", chosen), ("rejected", rejected))
    }
    return {
        "id": f"{question.id}-{name}",
        **sides,
        "answer": question.answer,
        "prefix_steps": list(prefix),
        "chosen_steps": list(chosen),
        "rejected_steps": list(rejected),
    }
