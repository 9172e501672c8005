"""One type of model: trained by the trainer, and compared with plain logits in every layout."""

import copy
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.models.compare import fused, plain
from benchmarks.models.features import features_of
from benchmarks.models.float64 import in_double, in_float64
from benchmarks.models.miniatures import kinds_of, miniature
from benchmarks.models.pairs import LONGEST, example_pairs
from prefkit import PreferenceConfig, PreferenceTrainer
from prefkit.data import PairDataset
from prefkit.errors import PrefkitError
from prefkit.model.attention.install import install_attention
from prefkit.model.attention.limits import why_not
from prefkit.model.head.fused import Head, install
from prefkit.model.head.transform import LogitTransform
from prefkit.train.models.policy import apply_peft, disable_dropout

LIMIT64, LIMIT32, GROSS32 = 1e-10, 1e-4, 1e-2
_TOKENIZER = Path(__file__).parents[2] / "prefkit" / "demo" / "assets" / "model"
_METHODS = ("dpo", "tdpo2")


@dataclass
class Record:
    """What was found for a type, as a line of JSON.

    Attributes:
        model_type: as transformers names it.
        verdict: "right"; "refused" (by name, before anything is computed); "wrong" (a number);
            "crash"; "not built" (transformers cannot make it here).
        words: the refusal, the error, or the wrong number.
        name: of the class.
        head, kinds, features: see `_head_words`, `kinds_of`, `features_of`.
        layout: that the trainer takes: "shared" (rows without padding, a common prefix once: what
            trees of two branches are) or "padded".
        fallback: why not shared rows, or "".
        methods: those that trained a step.
        off64, off32: by layout, the largest deviation from plain logits (see `Result.deviation`).
        seconds: that it took.
    """

    model_type: str
    verdict: str = "crash"
    words: str = ""
    name: str = ""
    head: str = ""
    kinds: list[str] = field(default_factory=list)
    features: str = ""
    layout: str = ""
    fallback: str = ""
    methods: list[str] = field(default_factory=list)
    off64: dict[str, float] = field(default_factory=dict)
    off32: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the type trains right, is refused, or cannot be made at all."""
        return self.verdict in ("right", "refused", "not built")


def look(model_type: str, lora: bool = False) -> Record:
    """Everything about one type; no error of the model or of prefkit leaves this function.

    Args:
        model_type: as transformers names it.
        lora: an adapter on all linear layers instead of all weights.
    """
    record, start = Record(model_type), time.monotonic()
    try:
        model = miniature(model_type)
        with torch.no_grad():
            model(input_ids=torch.arange(3, 11)[None], use_cache=False)
    except Exception as error:
        record.verdict, record.words = "not built", _words(error)
        return record
    record.name, record.features = type(model).__name__, features_of(model)
    record.kinds = list(kinds_of(model))
    try:
        _examine(record, model, lora)
    except PrefkitError as error:
        record.verdict, record.words = "refused", str(error)
    except Exception as error:
        record.verdict, record.words = "crash", f"{_words(error)} ({_place(error)})"
    record.seconds = time.monotonic() - start
    return record


def _examine(record: Record, model: nn.Module, lora: bool) -> None:
    for method in _METHODS:
        record.layout = train_a_step(copy.deepcopy(model), method, _adapter() if lora else None)
        record.methods.append(method)
    model = _adapted(model) if lora else model
    readers, head, record.fallback = prepared(model)
    record.head = _head_words(head)
    record.off32 = deviations(model, readers, head.transform)
    if getattr(model, "supports_gradient_checkpointing", False):
        best = "shared" if "shared" in readers else "padded"
        off = checkpointing_off(readers[best], head.transform, best)
        readers[best].gradient_checkpointing_disable()
        record.off32["checkpointing"] = off
    ahead = looks_ahead(model)
    try:
        with in_float64():
            for each in {model, *readers.values()}:
                in_double(each)
            record.off64 = deviations(model, readers, head.transform)
    except Exception as error:
        record.words = f"not in fp64: {_words(error)}"
    found, limit = (record.off64, LIMIT64) if record.off64 else (record.off32, LIMIT32)
    bad = {name: off for name, off in found.items() if not off <= limit}
    # What is wrong in fp32 alone: by far, or a step that differs when it is computed again.
    again = record.off32.get("checkpointing", 0.0)
    bad |= {f"{n} in fp32": x for n, x in record.off32.items() if not x <= GROSS32}
    bad |= {} if again <= LIMIT32 else {"checkpointing": again}
    record.verdict = "wrong" if bad or ahead else "right"
    if bad:
        record.words = ", ".join(f"{name} off by {off:.0e}" for name, off in bad.items())
    elif ahead:
        record.words = "a later token changes earlier logits, and the model is not refused"


def prepared(model: nn.Module) -> tuple[dict[str, nn.Module], Head, str]:
    """Copies of a model that read each layout, by layout; the head; and why not shared rows, or "".

    Raises:
        ModelError: the head cannot be fused.
    """
    padded, reader = copy.deepcopy(model), copy.deepcopy(model)
    head = install(padded)
    install(reader)
    install_attention(reader)
    reason = why_not(reader, LONGEST)
    if reason is not None:
        return {"padded": padded}, head, reason
    return {"padded": padded, "shared": reader, "separate": reader}, head, ""


def deviations(
    model: nn.Module, readers: Mapping[str, nn.Module], transform: LogitTransform
) -> dict[str, float]:
    """The largest deviation from plain logits by layout.

    Args:
        model: of transformers, nothing of prefkit installed.
        readers, transform: see `prepared`.
    """
    truth = plain(model, transform)
    return {
        layout: fused(reader, transform, layout).deviation(truth)
        for layout, reader in readers.items()
    }


def checkpointing_off(reader: Any, transform: LogitTransform, layout: str) -> float:
    """How far a training step with gradient checkpointing is from one without; dropout is off."""
    reader.train()
    disable_dropout(reader)
    torch.manual_seed(0)
    without = fused(reader, transform, layout)
    reader.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    return fused(reader, transform, layout).deviation(without)


def train_a_step(model: nn.Module, method: str, adapter: Any = None) -> str:
    """One optimiser step of `PreferenceTrainer` on the example pairs; the layout that it took.

    Args:
        model: of transformers; it is changed.
        method: of `PreferenceConfig`.
        adapter: `peft_config` of the trainer.
    Raises:
        PrefkitError: the model is refused.
        ValueError: the loss is no number.
    """
    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreferenceTrainer(
            model,
            args=_options(folder, method),
            train_dataset=PairDataset(example_pairs()),
            processing_class=tokenizer,
            peft_config=adapter,
        )
        loss = trainer.train().training_loss
    if loss != loss:
        raise ValueError(f"{method}: the loss is not a number")
    return "padded" if trainer.layout == "padded" else "shared"


def _options(folder: str, method: str) -> PreferenceConfig:
    return PreferenceConfig(
        output_dir=folder,
        method=method,
        max_steps=1,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )


def looks_ahead(model: nn.Module) -> bool:
    """Whether a later token changes earlier logits of the model, alone in its row."""
    ids = torch.arange(3, 35)[None]
    other = ids.clone()
    other[0, -1] = 77
    with torch.no_grad():
        one, two = (model(input_ids=some, use_cache=False).logits[0, :-1] for some in (ids, other))
    return bool((one - two).abs().max() > 1e-3 * one.abs().max())


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def _adapted(model: nn.Module) -> Any:
    """The model with LoRA on all linear layers, both of its factors random."""
    with tempfile.TemporaryDirectory() as folder:
        adapted = apply_peft(model, _adapter(), _options(folder, "dpo"))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    return adapted.eval()


def _head_words(head: Head) -> str:
    """The head in words: its size, and what the model does to its logits."""
    rows, width = head.module.weight.shape  # type: ignore[union-attr, misc]
    parts = [f"{rows} × {width}"]
    if getattr(head.module, "bias", None) is not None:
        parts.append("bias")
    if head.transform.logit_scale != 1.0:
        parts.append(f"scale {head.transform.logit_scale:.3g}")
    if head.transform.softcap is not None:
        parts.append(f"softcap {head.transform.softcap:g}")
    return ", ".join(parts)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
