"""docs/models.md: what was found, the models that most people train first."""

from collections import Counter
from collections.abc import Sequence

import torch
import transformers

from benchmarks.models.named import NAMED
from benchmarks.models.one import LIMIT32, LIMIT64, Record
from benchmarks.models.pairs import LONGEST

_COLUMNS = (
    "type",
    "class",
    "head",
    "layers",
    "attention",
    "rows",
    "methods",
    "off, fp64",
    "off, fp32",
)
_HEAD = """\
# Models

Every causal language model of transformers {transformers} in prefkit, by random miniatures with
every kind of layer that the released model has (torch {torch}, CPU). Made by
`python -m benchmarks.models --all --write docs/models.md`: a new release of transformers is one
run.

{summary}

Loss and gradients of TDPO on pairs of up to {longest} tokens, four times every window, two pairs in
a batch, against plain logits: the model as transformers made it, each sequence by itself.

- **head**: vocabulary × width of the miniature's head, and what the model does to its logits.
- **layers**: transformers' names of the kinds of layers, those with experts marked.
- **attention**: what it has beyond a causal softmax.
- **rows**: the layout that the trainer takes. *shared*: rows without padding, a common prefix read
  once, packing; *padded*: each side a padded row of its own. Why stands in the last column.
- **methods**: those that trained a step by `PreferenceTrainer`.
- **off**: the largest difference from plain logits over all layouts that the model can read (padded
  rows always, shared and separate rows where they are taken): of the loss, and of each parameter's
  gradient as a share of its largest entry. In fp64 casts to fp32 inside the model are lifted, and
  more than {limit64:.0e} is wrong; a model that cannot run so is judged in fp32, where more than
  {limit32:.0e} is. In fp32 a router or an indexer near a tie may choose otherwise by rounding. A
  step with gradient checkpointing is among the fp32 differences where the model has it.

Padded rows are no limit of the method in most of the types that have them, but nobody trains these
models on preferences today, and each would need code of its own:

- BART, BigBird-Pegasus, Blenderbot, Marian, MBart, MVP, Pegasus, PLBart, TrOCR; RoBERTa, CamemBERT,
  Data2Vec, XLM-RoBERTa, X-MOD; OpenAI GPT, RoFormer: they count positions along the row and take
  none from outside. Their position embeddings would have to be handed the sequences' own.
- Bloom, MPT: their biases are made of a mask over the whole row, once for all layers.
- BLT: it groups bytes into patches along the row. Fundamental: patches of two sequences would mix.
"""


def page(records: Sequence[Record]) -> str:
    """The page in Markdown.

    Args:
        records: one for each type, in any order.
    """
    by_type = {record.model_type: record for record in records}
    first = [by_type[name] for name in NAMED if name in by_type]
    rest = [by_type[name] for name in sorted(by_type.keys() - NAMED.keys())]
    head = _HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        summary=summary(records),
        longest=LONGEST,
        limit64=LIMIT64,
        limit32=LIMIT32,
    )
    parts = [head, "## Models that most people train\n", _table(first)]
    if rest:
        parts += ["## All others\n", _table(rest)]
    return "\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """How many are right, refused, wrong and so on, and how many read shared rows."""
    count = Counter(record.verdict for record in records)
    shared = sum(record.verdict == "right" and record.layout == "shared" for record in records)
    said = [
        f"{count['right']} train right",
        f"{shared} of them in shared rows",
        f"{count['refused']} refused by name",
        f"{count['wrong']} wrong",
        f"{count['crash']} crash",
        f"{count['not built']} cannot be made",
    ]
    return f"Of {len(records)} types: {', '.join(said)}."


def _table(records: Sequence[Record]) -> str:
    columns = [*_COLUMNS, "reason"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(map(_cell, _row(record))) + " |" for record in records]
    return "\n".join([*lines, ""])


def _row(record: Record) -> list[str]:
    name = NAMED.get(record.model_type)
    return [
        f"`{record.model_type}`" + (f" {name}" if name else ""),
        record.name,
        record.head,
        ", ".join(kind.replace("_", " ") for kind in record.kinds),
        record.features,
        record.layout if record.verdict in ("right", "wrong") else record.verdict,
        ", ".join(record.methods),
        _off(record.off64),
        _off(record.off32),
        reason_of(record),
    ]


def reason_of(record: Record) -> str:
    """What a row has to explain: why it is not right, or why not in shared rows."""
    said = [record.fallback] if record.layout != "shared" else []
    if record.verdict != "right":
        said = [f"**{record.verdict}**: {record.words}", *said]
    elif record.words:
        said.append(record.words)
    return "; ".join(part for part in said if part)


def _off(found: dict[str, float]) -> str:
    return f"{max(found.values()):.0e}" if found else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
