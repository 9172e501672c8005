"""Options of a run that say how its models are loaded and adapted, as TRL's `ModelConfig` has them.

The text under a field is its documentation and its `--help` line.
"""

from dataclasses import dataclass
from typing import Literal

from prefkit.options.option import option


@dataclass(kw_only=True)
class LoadingFields:
    """What a trainer reads of them: how a model that it is given by name is loaded."""

    # -- computation ----------------------------------------------------------------------------
    model_init_kwargs: dict | None = None
    """Further keywords of from_pretrained for models given by name, such as
    {"attn_implementation": "sdpa"}; from Python also dtype, which is float32 unless given."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model or tokenizer. It can do whatever you can: only for
    repositories whose code you have read."""


@dataclass(kw_only=True)
class QuantisationFields:
    """Frozen weights in 4 or 8 bits (QLoRA, arXiv 2305.14314), by bitsandbytes."""

    # -- quantisation ---------------------------------------------------------------------------
    load_in_4bit: bool = False
    """Keep the frozen weights of linear layers in 4 bits; the head stays whole. Needs an adapter
    and the package bitsandbytes."""
    load_in_8bit: bool = False
    """The same in 8 bits (LLM.int8)."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """What 4 bits mean: nf4 for weights of a normal distribution, or fp4."""
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format that 4-bit weights are multiplied in; None = bfloat16 with bf16, else dtype."""
    use_bnb_nested_quant: bool = False
    """Quantise the scales of 4-bit weights too: about 0.4 bits a weight less."""


@dataclass(kw_only=True)
class AdapterFields:
    """A low-rank adapter, which trains in place of the model."""

    # -- adapter --------------------------------------------------------------------------------
    adapter: Literal["none", "lora"] = "none"
    """lora trains a low-rank adapter; the model without it is the reference. Where model is the
    folder of an adapter, that one goes on training, and none is added."""
    use_peft: bool = False
    """TRL's way to say adapter: lora."""
    lora_r: int = option(16, at_least=1)
    """Rank of the adapter."""
    lora_alpha: int = option(32, at_least=1)
    """Scale of the adapter (over its rank)."""
    lora_dropout: float = option(0.0, at_least=0, below=1)
    """Dropout in front of the adapter."""
    lora_target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter; the head can never be one of them."""
    lora_target_parameters: list[str] | None = None
    """Parameters that get an adapter beside the layers, such as the experts of a mixture
    (mlp.experts.gate_up_proj), which are no layers of their own."""
    lora_modules_to_save: list[str] | None = None
    """Modules that train in full as copies, and are saved with the adapter: embed_tokens, norm,
    or the head, lm_head."""
    use_dora: bool = False
    """Train the magnitude of each output's weights by itself (DoRA, 2402.09353)."""
    use_rslora: bool = False
    """Scale the adapter by lora_alpha over the root of its rank (rsLoRA, 2312.03732)."""
