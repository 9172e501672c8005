"""The page docs/data_layouts.md: a row of every layout, and what `prefkit inspect` shows of it.

python -m tests.data.layout_examples > docs/data_layouts.md
"""

import io
import json
import logging
from typing import Any

from prefkit.data import TokenizeOptions
from prefkit.data.show import show_pairs
from tests.data.chat_cases import tokenizer_for
from tests.data.data_cases import CONVERSATION_ROW, STANDARD_ROW, TDPO_FILE, scdpo_row
from tests.data.test_layouts import LAYOUTS, OTHER_KINDS, REFUSED

_HEAD = """\
# Rows of other trainers, as they are read

Made by `python -m tests.data.layout_examples` from the rows of the tests. No option is needed to
read any of these rows. Each block is a row and what `prefkit inspect FILE --model MODEL --view
pairs` shows of it with Qwen3's chat template: `⟦scored⟧`, the rest is context. Plain prompts are
used as they are unless `string_prompts: chat` puts them into the template.

For columns of other names use `columns`, in a config of `train`, `inspect`, `plan` and `score`, and
likewise for the questions of `build` and `evaluate`:

```yaml
columns: {prompt: ask, chosen: good, rejected: bad, notes: null}   # null ignores a column
```

A text column that is not read is an error that names the column. Columns whose names describe the
row (`id`, `source`, `model`, `score_…`, `…_model`, `answer`, …) need not be mentioned.
"""
_OWN: dict[str, Any] = {
    "TRL, standard": STANDARD_ROW,
    "TRL, conversational": CONVERSATION_ROW,
    "Several rejected responses": {**STANDARD_ROW, "rejected": [" 5.", " 6."]},
    "SCDPO": scdpo_row(),
    "TDPO": {"prompt": "Q:", **next(iter(TDPO_FILE.values()))},
}
_NAMES = {
    "alpaca": "LLaMA-Factory, alpaca",
    "alpaca with system": "LLaMA-Factory, alpaca with a system text",
    "alpaca with history": "LLaMA-Factory, alpaca with earlier turns",
    "sharegpt": "LLaMA-Factory, sharegpt",
    "axolotl": "axolotl, `chat_template.default`",
    "orca": "axolotl, `chatml.intel` (Orca)",
    "argilla": "axolotl, `chatml.argilla`",
    "openrlhf": "OpenRLHF, and TRL with an implicit prompt",
    "ultrafeedback": "UltraFeedback, binarized",
}
_TITLES = {
    "UltraFeedback": "UltraFeedback, as it was published",
    "unpaired": "TRL and KTO, unpaired",
}
_UNREAD = "an unknown question"


def page() -> str:
    """The whole page, Markdown."""
    rows = _OWN | {title: LAYOUTS[name][0] for name, title in _NAMES.items()}
    parts = [_HEAD, *(_section(title, row) for title, row in rows.items()), "## Refused\n"]
    refused = {_TITLES.get(name, name): row for name, row in OTHER_KINDS.items()}
    refused["A column that is not read"] = REFUSED[_UNREAD][0]
    for title, row in refused.items():
        parts.append(f"{title}:\n\n```text\n{_shown(row)}\n\nerror: {_error(row)}\n```\n")
    return "\n".join(parts)


def _section(title: str, row: dict[str, Any]) -> str:
    return f"## {title}\n\n```text\n{_shown(row)}\n\n{_inspected(row)}\n```\n"


def _shown(row: dict[str, Any]) -> str:
    """The row as JSON, a field a line."""
    fields = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in row.items())
    return "{" + ",\n ".join(fields) + "}"


def _inspected(row: dict[str, Any]) -> str:
    stream = io.StringIO()
    tokenizer, options = tokenizer_for("qwen3"), TokenizeOptions()
    show_pairs([row], tokenizer, options=options, stream=stream, view="pairs")
    pair = stream.getvalue().split("┌")[0].splitlines()[2:]  # without legend, rule and summary
    return "\n".join(line.rstrip() for line in pair if "──" not in line).strip("\n")


def _error(row: dict[str, Any]) -> str:
    try:
        show_pairs([row], tokenizer_for("qwen3"), options=TokenizeOptions(), stream=io.StringIO())
    except ValueError as error:
        return str(error)
    raise AssertionError("this row was to be refused")


if __name__ == "__main__":
    logging.getLogger("prefkit").setLevel(logging.ERROR)
    print(page(), end="")
