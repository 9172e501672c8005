"""The two models of a contrastive score, run on the same tokens.

Two adapters of one base model are put on one copy of it and switched, so that a pair of LoRA models
takes the memory of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.model.adapters import put_adapter
from prefkit.model.causal import check_causal
from prefkit.model.head.fused import Head, install, unwrap
from prefkit.model.loading import (
    base_of,
    base_revision,
    check_model_folder,
    load_config,
    load_model,
    load_tokenizer,
    positions_of,
)
from prefkit.model.reference.fingerprints import fingerprint_model
from prefkit.model.reference.policy import Reference, check_tokenizers
from prefkit.train.rows.layout import choose_layout
from prefkit_kernels import contrastive_scores

_HELP = "Name a folder that holds one."


class TwoModels:
    """A positive and a negative model on one device.

    Args:
        positive, negative: causal language models; the same object where both are adapters of one
            base model, then called "positive" and "negative" on it.
    """

    def __init__(self, positive: Any, negative: Any) -> None:
        self.models = {"positive": positive, "negative": negative}
        self._adapters = positive is negative
        for model in self._distinct:
            check_causal(model)
        self.heads: dict[str, Head] = {name: install(m) for name, m in self.models.items()}
        self.device = next(positive.parameters()).device

    def fingerprint(self) -> str:
        """A hash of both models' weights and number format."""
        if self._adapters:
            return fingerprint_model(self.models["positive"])
        return "/".join(fingerprint_model(model) for model in self.models.values())

    def layout(self, longest: int) -> Layout:
        """Rows without padding, where both models can read them."""
        args = SimpleNamespace(layout="auto", disable_dropout=True)
        return "padded" if choose_layout(args, self._distinct, longest) == "padded" else "separate"

    @property
    def _distinct(self) -> list[Any]:
        return [self.models["positive"]] + [self.models["negative"]] * (not self._adapters)

    def scores(
        self, batch: Mapping[str, Any], beta: float, memory_budget: int | None = None
    ) -> Tensor:
        """(T,) s_t of the batch's scored tokens, float32 (float64 of float64 models), on the CPU.

        Args:
            batch: of `prefkit.data.SolutionCollator`.
            beta, memory_budget: see `contrastive_scores`.
        """
        batch = send_to_device(batch, self.device)
        operands: dict[str, Any] = {}
        for name in ("positive", "negative"):
            short = name[:3]
            hidden, weight, bias = self._operands(name, batch)
            transform = self.heads[name].transform
            operands |= {f"{short}_hidden": hidden, f"{short}_weight": weight}
            operands |= {f"{short}_bias": bias, f"{short}_softcap": transform.softcap}
            operands[f"{short}_logit_scale"] = transform.logit_scale
        return contrastive_scores(
            **operands, targets=batch["targets"], beta=beta, memory_budget=memory_budget
        ).cpu()

    def _operands(self, name: str, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any]:
        model = self.models[name]
        if self._adapters:
            model.set_adapter(name)
        reference = Reference(model, self.heads[name])
        return reference.run(batch, batch["positions"], lambda *operands: operands)


@dataclass(frozen=True)
class Common:
    """What rows must know of the two models, before their weights are loaded.

    Attributes:
        tokenizer: theirs, None where the models came loaded.
        vocab_size: tokens that both know.
        max_position_embeddings: tokens of a sequence that both can read; None = no limit told.
    """

    tokenizer: Any
    vocab_size: int
    max_position_embeddings: int | None


def look_at_two(positive: Any, negative: Any) -> Common:
    """Checks what the models' folders tell.

    Args:
        positive, negative: folders (of models or of peft adapters), Hub names, or loaded models.

    Raises:
        ModelError: a folder that holds no model, or tokenizers that do not agree.
        ConfigError: one model by name and the other loaded.
    """
    names = {"positive": positive, "negative": negative}
    tokenizer = None
    strings = [name for name, given in names.items() if isinstance(given, str)]
    if len(strings) == 1:
        raise ConfigError(
            f"{strings[0]} is a name and the other model is loaded. Give both the same way."
        )
    for name, given in names.items():
        if isinstance(given, str):
            check_model_folder(name, given, adapters=True)
        elif not hasattr(getattr(given, "config", None), "model_type"):
            raise ModelError(f"{name} is a {type(given).__name__}; it must be a causal LM.")
    if strings:
        tokenizer = check_same_tokenizer(positive, negative)
        configs = [
            load_config(base_of(name) or name, revision=base_revision(name))
            for name in (positive, negative)
        ]
    else:
        configs = [unwrap(model).config for model in (positive, negative)]
    texts: list[Any] = [config.get_text_config() for config in configs]
    limits = [positions_of(text) for text in texts]
    return Common(
        tokenizer,
        min(text.vocab_size for text in texts),
        min((limit for limit in limits if limit), default=None),
    )


def load_two(positive: Any, negative: Any, dtype: str) -> TwoModels:
    """Both models on the accelerator (or the CPU); `look_at_two` has checked what is cheap.

    Args:
        positive, negative: as for `look_at_two`; loaded models stay where they are.
        dtype: number format of what is loaded here.

    Raises:
        ModelError: a model that cannot be loaded or fused.
        ConfigError: an adapter without the package peft.
    """
    if not isinstance(positive, str):
        return TwoModels(positive, negative)
    bases = base_of(positive), base_of(negative)
    index = torch.accelerator.current_accelerator() or torch.device("cpu")
    one_revision = base_revision(positive) == base_revision(negative)
    if bases[0] is not None and bases[0] == bases[1] and one_revision:
        both = _adapted(bases[0], {"positive": positive, "negative": negative}, dtype)
        return TwoModels(both.to(index), both)
    loaded = [
        load_model(name, dtype) if base is None else _adapted(base, {"default": name}, dtype)
        for name, base in zip((positive, negative), bases, strict=True)
    ]
    return TwoModels(*(model.to(index) for model in loaded))


def check_same_tokenizer(positive: str, negative: str) -> Any:
    """The tokenizer of both models.

    Raises:
        ModelError: there is none, or they give other ids.
    """
    ours, theirs = load_tokenizer(positive, _HELP), load_tokenizer(negative, _HELP)
    try:
        check_tokenizers(ours, theirs)
    except ModelError as error:
        raise ModelError(
            f"negative: {negative} has another tokenizer than {positive}, so a token of the one is "
            "no token of the other. Train both from the same model."
        ) from error
    return ours


def _adapted(base: str, adapters: Mapping[str, str], dtype: str) -> Any:
    """The base model with one or more adapters of its one revision, by their names on it."""
    model = load_model(base, dtype, revision=base_revision(next(iter(adapters.values()))))
    for name, folder in adapters.items():
        model = put_adapter(model, folder, name)
    return model
