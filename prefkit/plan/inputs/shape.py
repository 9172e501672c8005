"""What a model is made of, from its config alone.

Counted from the model that transformers would build, so every architecture is counted right: tied
heads, biases, experts, an adapter's matrices.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prefkit.errors import ModelError
from prefkit.model.attention.limits import rotary_limit
from prefkit.model.loading import positions_of
from prefkit.model.router import experts_of
from prefkit.plan.inputs.meta_model import Lora, build, decoder_layers


@dataclass(frozen=True)
class ModelShape:
    """Numbers of a model, in parameters unless said otherwise.

    Attributes:
        name: as the user gave it.
        layers, hidden, heads, head_dim, vocab: sizes; `heads` are query heads.
        tied: whether head and input embedding are one matrix.
        layer: parameters of one layer (their mean, where layers differ), without adapter.
        layer_active: of them, those that a token meets (fewer with experts).
        embedding: of the input embedding (positions included).
        head: of the output head; 0 where tied.
        other: final norm and whatever else.
        adapter_layer: trainable parameters of an adapter in one layer; 0 without.
        adapter_matrices: matrices of an adapter in one layer.
        row_limit: tokens of a sequence up to which rows without padding are possible, or None.
        max_length: positions the model knows, or None.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    head_dim: int
    vocab: int
    tied: bool
    layer: int
    layer_active: int
    embedding: int
    head: int
    other: int
    adapter_layer: int
    adapter_matrices: int
    row_limit: int | None
    max_length: int | None

    @property
    def total(self) -> int:
        """All parameters of the model, without adapter."""
        return self.layers * self.layer + self.embedding + self.head + self.other

    @property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        return self.layers * self.adapter_layer


def load_config(name: str) -> Any:
    """The config of a folder, of a cached Hub name, or of a `config.json` by itself.

    Raises:
        ModelError: there is none on this machine, or transformers does not know the architecture.
    """
    from transformers import AutoConfig

    from prefkit.model.loading import check_model_folder

    path = Path(name).expanduser()
    try:
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            if "model_type" not in content:
                raise ModelError(f"model: {name} has no model_type, so it is no model's config.")
            return AutoConfig.for_model(**content)
        check_model_folder("model", name)
        # The Hub is not asked: out of reach, it would be tried for half a minute.
        return AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not path.exists():
            raise ModelError(
                f"model: there is no config of the name {name} on this machine. Download it first "
                f"(hf download {name} config.json), or give its config.json or its folder."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model: {name}: no config to plan from: {reason} Name a folder, a Hub model or a "
            "config.json."
        ) from error


def read_shape(name: str, config: Any, lora: Lora | None = None) -> ModelShape:
    """Counts a model.

    Args:
        name: for messages and tables.
        config: of `load_config`.
        lora: the run's adapter, if it has one.

    Raises:
        ModelError: a model without attention; see `build`.
    """
    text = config.get_text_config()
    if not getattr(text, "num_attention_heads", None):
        raise ModelError(
            f"model: a {config.model_type} has no attention heads. Only models with attention are "
            "planned; the states of other layers are not counted."
        )
    model = build(config)
    stack = decoder_layers(model)
    body = sum(p.numel() for p in stack.parameters())
    adapter = [] if lora is None else _adapter_of_a_layer(config, lora)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    positions = sum(
        p.numel()
        for key, p in model.named_parameters()
        if "position" in key.lower() or key.split(".")[-2] == "wpe"
    )
    head_size = 0 if tied else sum(p.numel() for p in head.parameters())
    embeddings = embedding.weight.numel() + positions
    everything = sum(p.numel() for p in model.parameters())
    layers = len(stack)
    return ModelShape(
        name=name,
        layers=layers,
        hidden=head.weight.shape[1],
        heads=text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=head.weight.shape[0],
        tied=tied,
        layer=round(body / layers),
        layer_active=round((body - _idle(stack, text)) / layers),
        embedding=embeddings,
        head=head_size,
        other=everything - body - embeddings - head_size,
        adapter_layer=sum(p.numel() for p in adapter),
        adapter_matrices=len(adapter),
        row_limit=rotary_limit(text),
        max_length=positions_of(text),
    )


def _adapter_of_a_layer(config: Any, lora: Lora) -> list[nn.Parameter]:
    model = build(config, layers=1, lora=lora)  # PEFT takes seconds for 80 layers
    return [p for key, p in model.named_parameters() if "lora_" in key]


def _idle(stack: nn.ModuleList, config: Any) -> int:
    """Parameters of experts that a token does not meet."""
    chosen, total = getattr(config, "num_experts_per_tok", None), experts_of(config)
    if not chosen or not total:
        return 0
    experts = sum(p.numel() for key, p in stack.named_parameters() if ".experts." in f".{key}")
    return round(experts * (1 - chosen / total))
