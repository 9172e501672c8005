"""cDPO's positive and negative model (arXiv 2411.19943, section 4.1), trained one after another.

Each is the start model after one epoch on its solutions, by `SupervisedTrainer`, as an adapter or
in full. A folder's `contrast.json` says what it is trained from, first that it was begun, last what
came out: a finished model is not trained again, an unfinished one goes on from its checkpoint, and
one of other rows or settings is refused.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefkit.errors import ConfigError, PrefkitError
from prefkit.files.atomic import check_writable, write_json
from prefkit.options.check import check_options
from prefkit.options.option import option
from prefkit.pairs.pipelines.cdpo import NEGATIVE, POSITIVE
from prefkit.train.checkpointing.checkpoint import delete, list_checkpoints

if TYPE_CHECKING:
    from prefkit.train.supervised import SupervisedTrainer

logger = logging.getLogger(__name__)
RECORD = "contrast.json"


@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """How both models are trained; defaults are the paper's.

    Attributes:
        adapter: "lora", or "none" for full fine-tuning (then take a lower learning rate).
        lora_r, lora_alpha: of the adapter, on all linear layers but the head.
        learning_rate, epochs: peak rate (linear decay) and passes over the solutions.
        batch_size: solutions an optimiser step.
        device_batch_size: solutions a forward pass; None = all of a step.
        seed: of the order of the rows and of the adapter.
        bf16: mixed precision.
        save_steps: optimiser steps between two checkpoints.
        text: how rows become tokens: fields of `prefkit.train.fields.TextFields`.

    Raises:
        ConfigError: a value out of range.
    """

    adapter: Literal["lora", "none"] = "lora"
    lora_r: int = option(8, at_least=1)
    lora_alpha: int = option(16, at_least=1)
    learning_rate: float = option(3e-4, above=0)
    epochs: float = option(1.0, above=0)
    batch_size: int = option(8, at_least=1)
    device_batch_size: int | None = option(None, at_least=1)
    seed: int = 0
    bf16: bool = False
    save_steps: int = option(50, at_least=1)
    text: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        if self.batch_size % (self.device_batch_size or 1):
            raise ConfigError(
                f"device_batch_size is {self.device_batch_size}; it must divide batch_size "
                f"({self.batch_size})."
            )


class ContrastModels(NamedTuple):
    """Folders of both models (of adapters, where they are trained), to give to `score_pairs`."""

    positive: Path
    negative: Path

    def records(self) -> dict[str, Any]:
        """What the manifest says of both: rows, steps, seconds, losses."""
        return {folder.name: _read_record(folder) for folder in self}


def train_two_models(
    positive_rows: Sequence[Mapping[str, Any]],
    negative_rows: Sequence[Mapping[str, Any]],
    model: str,
    out: str | Path,
    settings: ContrastSettings | None = None,
    *,
    progress: bool = False,
) -> ContrastModels:
    """Trains a model on right solutions and another on wrong ones.

    Args:
        positive_rows, negative_rows: `{"prompt", "response"}` (see `prefkit.data.solutions`).
        model: folder or Hub name of the model that both start from.
        out: folder in which `positive` and `negative` are made.
        settings: see `ContrastSettings`.
        progress: show a bar with the time left on standard error.

    Returns:
        The two folders; each holds `contrast.json`: `rows`, `tokens` (learnt in one pass), `steps`,
        `seconds` (of the last start), `resumed_from` (its first step), `loss_first`, `loss_last`
        (nats a token, means of the first and the last tenth of the run), `settings`.

    Raises:
        ConfigError: a folder of other rows or settings, or one that cannot be written.
        RowError: a row that cannot be read.
        PrefkitError: no rows for one of the models.
    """
    settings = settings or ContrastSettings()
    sources = {POSITIVE: list(positive_rows), NEGATIVE: list(negative_rows)}
    for name, rows in sources.items():
        if not rows:
            which = "right" if name == POSITIVE else "wrong"
            raise PrefkitError(
                f"There is no {which} solution, so the {name} model has nothing to learn from. Take"
                " more questions, or more samples a question."
            )
    for name, rows in sources.items():
        _train_one(rows, model, Path(out) / name, settings, progress)
    return ContrastModels(Path(out) / POSITIVE, Path(out) / NEGATIVE)


def _train_one(
    rows: list[Mapping[str, Any]],
    model: str,
    folder: Path,
    settings: ContrastSettings,
    progress: bool,
) -> None:
    identity = _identity(rows, model, settings)
    record = _read_record(folder)
    if record.get("identity", identity) != identity:
        raise ConfigError(
            f"{folder} was trained from other solutions, another model or other settings. Remove "
            "it, or choose another output folder."
        )
    if record.get("finished"):
        return
    check_writable(folder, "out")
    write_json(folder / RECORD, {"identity": identity, "finished": False})
    trainer = _make_trainer(rows, model, folder, settings, progress)
    start = time.perf_counter()
    begun = bool(list_checkpoints(folder))
    trainer.train(resume_from_checkpoint="auto" if begun else None)
    trainer.save_model()
    record = {
        "identity": identity,
        "finished": True,
        "model": model,
        "rows": len(rows),
        "seconds": round(time.perf_counter() - start, 2),
        "settings": {**asdict(settings), "text": dict(settings.text)},
        **_outcome(trainer),
    }
    write_json(folder / RECORD, record)
    _remove_checkpoints(folder)


def _outcome(trainer: "SupervisedTrainer") -> dict[str, Any]:
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    report = trainer.train_dataset.report  # type: ignore[union-attr]
    return {
        "tokens": report.scored,
        "steps": trainer.state.global_step,
        "resumed_from": trainer.started_at,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }


def _make_trainer(
    rows: list[Mapping[str, Any]],
    model: str,
    folder: Path,
    settings: ContrastSettings,
    progress: bool,
) -> "SupervisedTrainer":
    from transformers import PrinterCallback, ProgressCallback

    from prefkit.model.loading import load_model, load_tokenizer
    from prefkit.train.supervised import SupervisedConfig, SupervisedTrainer

    at_once = min(settings.device_batch_size or settings.batch_size, settings.batch_size)
    steps = math.ceil(math.ceil(len(rows) / settings.batch_size) * settings.epochs)
    args = SupervisedConfig(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=settings.batch_size // at_once,
        seed=settings.seed,
        bf16=settings.bf16,
        logging_steps=max(1, steps // 10),
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=1,
        disable_tqdm=not progress,
        report_to="none",
        **settings.text,
    )
    trainer = SupervisedTrainer(
        load_model(_absolute(model), "float32"),
        args=args,
        train_dataset=rows,
        processing_class=load_tokenizer(model, "Name a folder that holds one."),
        peft_config=_lora(settings),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if progress:
        trainer.add_callback(_bar(folder.name))
    return trainer


def _bar(name: str) -> Any:
    """A bar with the model's name and the time left, and without a line for every log."""
    from transformers import ProgressCallback

    class Bar(ProgressCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_train_begin(args, state, control, **more)
            if self.training_bar is not None:
                self.training_bar.set_description(f"Training the {name} model")

        def on_log(self, *_: Any, **more: Any) -> None:
            return

    return Bar()


def _lora(settings: ContrastSettings) -> Any:
    if settings.adapter == "none":
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError(
            "adapter: lora needs the package peft. Install it with: pip install 'prefkit[peft]', or"
            " train both models in full (adapter: none)."
        ) from error
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
    )


def _absolute(model: str) -> str:
    """A folder's full path: an adapter remembers it, and must be found from elsewhere."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.exists() else model


def _identity(rows: Sequence[Mapping[str, Any]], model: str, settings: ContrastSettings) -> str:
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True, default=str).encode())
    digest.update(_absolute(model).encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _remove_checkpoints(folder: Path) -> None:
    """The model is saved: the optimiser's state would only take room."""
    for one in list_checkpoints(folder):
        delete(one)
