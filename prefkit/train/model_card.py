"""The README.md of a trained model: what it was made of, by which method, and how to do it again.

It is written beside the model on this machine, and never over a README of somebody else's.
"""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from prefkit.files.atomic import write_text
from prefkit.loss.objectives import METHODS
from prefkit.model.head.fused import is_peft, unwrap
from prefkit.options.option import default_of
from prefkit.options.secrets import without_secrets
from prefkit.train.checkpointing.same_run import CONFIG_FILE
from prefkit.train.common import CommonFields
from prefkit.train.models.loading import name_of
from prefkit.train.options import options_file
from prefkit.version import VERSION

FILE = "README.md"
_OURS = "<!-- Made by prefkit, which overwrites only a README that has this line. -->"
_PACKAGES = ("torch", "transformers", "peft", "datasets", "tokenizers")
_SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
# Of where and how a run was started, not of what it learnt.
_OF_THE_MACHINE = ("output_dir", "report_to", "resume_from_checkpoint", "remove_unused_columns")
_TEMPLATE = """\
---
{{ card_data }}
---
{{ ours }}

# {{ name }}

{{ base }}, trained {{ how }} with prefkit {{ version }}{{ paper }}.

| | |
| --- | --- |
{% for key, value in facts %}| {{ key }} | {{ value }} |
{% endfor %}
## How to do it again

{{ again }}

```yaml
{{ options }}```

## Log

{% if log %}| | first | last |
| --- | --- | --- |
{% for key, first, last in log %}| {{ key }} | {{ first }} | {{ last }} |
{% endfor %}{% else %}Nothing was logged.
{% endif %}
## Versions

{{ versions }}
"""


def tags_of(args: Any) -> list[str]:
    """What a model is tagged with: prefkit, and the method."""
    return ["prefkit", getattr(args, "method", "sft")]


def put(trainer: Any, folder: Path, target: Path, *names: Any, **metadata: Any) -> None:
    """Writes the card into a folder, unless the place that it is for has another README.

    Args:
        trainer: a `PrefkitTrainer`.
        folder: where to write; a README that PEFT has put there is removed.
        target: where the folder's files will be.
        names, metadata: see `card_of`.
    """
    if folder != target:
        (folder / FILE).unlink(missing_ok=True)
    path = target / FILE
    if not path.exists() or _OURS in path.read_text(encoding="utf-8", errors="replace"):
        write_text(folder / FILE, card_of(trainer, *names, **metadata))


def card_of(
    trainer: Any,
    name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
    **metadata: Any,
) -> str:
    """The text of a card.

    Args:
        trainer: a `PrefkitTrainer`.
        name: of the model; None = the output folder's.
        dataset_name: of the training data on the Hub.
        tags: more of them.
        metadata: more fields of `huggingface_hub.ModelCardData`, such as license.
    """
    args, model = trainer.args, trainer.models.policy
    base = name_of(model)
    name = name or Path(args.output_dir).absolute().name
    more = [tags] if isinstance(tags, str) else list(tags or [])
    data = ModelCardData(
        model_name=name,
        base_model=base if base and not Path(base).exists() else None,
        library_name="peft" if is_peft(model) else "transformers",
        pipeline_tag="text-generation",
        datasets=dataset_name,
        tags=list(dict.fromkeys(["generated_from_trainer", *tags_of(args), *more])),
        **metadata,
    )
    method = METHODS.get(getattr(args, "method", ""))
    number = "" if method is None else method.paper
    content: dict[str, Any] = {
        "ours": _OURS,
        "name": name,
        "base": f"`{base}`" if base else f"A {type(unwrap(model)).__name__}",
        "how": "on solutions" if method is None else f"on preferences by `{args.method}`",
        "paper": f" ([arXiv {number}](https://arxiv.org/abs/{number}))" if number else "",
        "version": VERSION,
        "facts": _facts(trainer, model),
        "log": _log(trainer.state.log_history),
        "versions": _versions(),
        **_again(args),
    }
    return str(ModelCard.from_template(data, template_str=_TEMPLATE, **content))


def _facts(trainer: Any, model: Any) -> list[tuple[str, str]]:
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    facts = [("trained parameters", f"{trained:,}")]
    if is_peft(model):
        config = model.peft_config[model.active_adapters[0]]
        rank = f" of rank {config.r}" if getattr(config, "r", None) else ""
        facts.append(("adapter", f"{config.peft_type.value}{rank}"))
    if hasattr(trainer.train_dataset, "__len__"):
        facts.append(("rows of data", f"{len(trainer.train_dataset):,}"))
    facts.append(("optimiser steps", f"{trainer.state.global_step:,}"))
    facts.append(("processes", f"{trainer.args.world_size}"))
    return facts


def _again(args: Any) -> dict[str, str]:
    """The command and the options of the run."""
    file = Path(args.output_dir) / CONFIG_FILE
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        given = yaml.safe_load(text) or {}
        return {
            "again": f"`prefkit train {CONFIG_FILE}`, with the file beside this one:",
            # An earlier version wrote secrets down.
            "options": options_file(given) if without_secrets(given)[1] else text,
        }
    return {
        "again": f"`{type(args).__name__}` with these options, all others as they are by default:",
        "options": options_file(_changed(args)),
    }


def _changed(args: Any) -> dict[str, Any]:
    """The options that a reader of the help knows, where they are not the defaults."""
    own = {field.name: field for cls in type(args).__mro__ for field in _fields(cls)}
    found = {}
    for name, field in own.items():
        value = getattr(args, name, None)
        value = getattr(value, "value", value)  # of an enumeration
        plain = isinstance(value, bool | int | float | str | list | dict)
        same = value == default_of(field) or not (value or default_of(field))  # None is no
        if plain and not same and name not in _OF_THE_MACHINE:
            found[name] = value
    return found


def _fields(cls: type) -> list[dataclasses.Field]:
    """Those of prefkit's own dataclasses, and of transformers' the ones that the help shows."""
    if cls.__name__ == "TrainingArguments":
        return list(dataclasses.fields(CommonFields))
    ours = cls.__module__.startswith("prefkit.") and cls.__name__.endswith(("Fields", "Options"))
    return list(dataclasses.fields(cls)) if ours else []


def _log(history: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """First and last value of what matters, of training and of evaluation."""
    rows = []
    for name in (*_SHOWN, *(f"eval_{name}" for name in _SHOWN)):
        if lines := [line[name] for line in history if name in line]:
            rows.append((name, f"{lines[0]:.4f}", f"{lines[-1]:.4f}"))
    return rows


def _versions() -> str:
    found = [f"prefkit {VERSION}", f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
