"""Rows in the formats of TRL's test datasets, by the names of those datasets."""

import json
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value

_COUNT = 19  # as many as TRL's: 17 to train on, 2 to evaluate with
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "The first."},
                    "b": {"type": "integer", "description": "The second."},
                },
                "required": ["a", "b"],
            },
            "return": {"type": "integer", "description": "The sum."},
        },
    }
]


def load_dataset(
    path: str, name: str | None = None, split: str | None = None, streaming: bool = False
) -> Any:
    """In the place of `datasets.load_dataset`: the stand-in of one of TRL's test datasets.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    makers = {
        ("trl-internal-testing/zen", "standard_preference"): standard,
        ("trl-internal-testing/zen", "conversational_preference"): conversational,
        ("trl-internal-testing/zen", "standard_implicit_prompt_preference"): standard_implicit,
        ("trl-internal-testing/zen", "conversational_implicit_prompt_preference"): (
            conversational_implicit
        ),
        ("trl-internal-testing/zen", "standard_unpaired_preference"): standard_unpaired,
        ("trl-internal-testing/toolcall", "preference"): tool_calls,
        ("trl-internal-testing/harmony", "preference"): harmony,
        ("trl-internal-testing/zen-image", "conversational_preference"): one_image,
        ("trl-internal-testing/zen-multi-image", "conversational_preference"): several_images,
    }
    if (path, name) not in makers:
        raise FileNotFoundError(f"there is no stand-in for {path}, {name}")
    made: DatasetDict = makers[path, name]().train_test_split(test_size=0.1, shuffle=False)
    found = made if split is None else made[split]
    return found.to_iterable_dataset() if streaming else found


def _sums() -> list[tuple[str, str, str]]:
    """(question, right answer, wrong answer)"""
    return [
        (f"How much is {i} + {i * i % 7 + 1}?", f"It is {i + i * i % 7 + 1}.", f"I guess {i}.")
        for i in range(_COUNT)
    ]


def _said(role: str, content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content, **more}]


def standard() -> Dataset:
    rows = [{"prompt": q, "chosen": f" {r}", "rejected": f" {w}"} for q, r, w in _sums()]
    return Dataset.from_list(rows)


def standard_implicit() -> Dataset:
    return Dataset.from_list(
        [{"chosen": f"{q} {right}", "rejected": f"{q} {wrong}"} for q, right, wrong in _sums()]
    )


def standard_unpaired() -> Dataset:
    return Dataset.from_list(
        [{"prompt": q, "completion": f" {right}", "label": True} for q, right, _ in _sums()]
    )


def conversational() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": _said("user", q),
                "chosen": _said("assistant", right),
                "rejected": _said("assistant", wrong),
            }
            for q, right, wrong in _sums()
        ]
    )


def conversational_implicit() -> Dataset:
    return Dataset.from_list(
        [
            {
                "chosen": _said("user", q) + _said("assistant", right),
                "rejected": _said("user", q) + _said("assistant", wrong),
            }
            for q, right, wrong in _sums()
        ]
    )


def harmony() -> Dataset:
    """Thoughts beside answers, and variables of the chat template."""
    variables = {"reasoning_effort": "low", "model_identity": "You count."}
    return Dataset.from_list(
        [
            {
                "prompt": _said("user", q),
                "chosen": _said("assistant", right, thinking="I add the two."),
                "rejected": _said("assistant", wrong, thinking="I take the first."),
                "chat_template_kwargs": variables,
            }
            for q, right, wrong in _sums()
        ]
    )


def tool_calls() -> Dataset:
    rows = []
    for i in range(8):
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": i, "b": 1}}}
        asked = [{"role": "assistant", "tool_calls": [call]}]
        result = [{"role": "tool", "name": "add", "content": str(i + 1)}]
        rows.append(
            {
                "prompt": _said("user", f"How much is {i} + 1?"),
                "chosen": asked + result + _said("assistant", f"It is {i + 1}."),
                "rejected": asked + result + _said("assistant", "I do not know."),
                "tools": json.dumps(_TOOLS),
            }
        )
    return Dataset.from_list(rows)


# -- with images -----------------------------------------------------------------------------------

_PART = {"type": Value("string"), "text": Value("string")}


def one_image() -> Dataset:
    """Messages of text alone, and an image for each row."""
    rows = conversational()
    columns = {**rows[:], "image": [_picture(i) for i in range(_COUNT)]}
    return Dataset.from_dict(columns, features=Features({**rows.features, "image": Image()}))


def several_images() -> Dataset:
    """Messages of parts, with none to two images."""
    messages = List({"role": Value("string"), "content": List(_PART)})
    columns: dict[str, list[Any]] = {n: [] for n in ("prompt", "chosen", "rejected", "images")}
    for i, (question, right, wrong) in enumerate(_sums()):
        columns["prompt"].append(_said("user", _parts(question, images=i % 3)))
        columns["chosen"].append(_said("assistant", _parts(right)))
        columns["rejected"].append(_said("assistant", _parts(wrong)))
        columns["images"].append([_picture(10 * i + k) for k in range(i % 3)])
    sides = dict.fromkeys(("prompt", "chosen", "rejected"), messages)
    features = Features({**sides, "images": List(Image())})
    return Dataset.from_dict(columns, features=features)


def _parts(text: str, images: int = 0) -> list[dict[str, Any]]:
    image = {"type": "image", "text": None}
    return [*[image] * images, {"type": "text", "text": text}]


def _picture(seed: int) -> Any:
    import numpy as np
    from PIL import Image as Pictures

    draw = np.random.default_rng(seed)
    height, width = draw.integers(32, 64, 2)
    return Pictures.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
