"""What a model's attention has beyond a causal softmax, in words, read from the model itself."""

from typing import Any

from torch import nn

# Parts of the names of modules and parameters, and what they mean.
_MODULES = {
    "gateddelta": "gated delta net",
    "kimidelta": "delta attention",
    "deltaattention": "delta attention",
    "mamba": "Mamba",
    "falconh1mixer": "Mamba",
    "rglru": "linear recurrence",
    "rwkv": "RWKV",
    "mlstm": "mLSTM",
    "lightningattention": "lightning attention",
    "shortconv": "short convolution",
    "indexer": "indexer",
    "compressor": "compressed keys",
    "alibi": "ALiBi",
}
_PARAMETERS = {
    "sink": "sinks",
    "relative_attention_bias": "position bias",
    "position_bias": "position bias",
    "rel_logits_proj": "position bias",
    "self_attn.rel_": "position bias",
    "kv_a_proj": "latent keys and values",
}


def features_of(model: nn.Module) -> str:
    """The features, separated by commas; "" for a plain causal softmax.

    Args:
        model: a causal language model of transformers.
    """
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    found = [*_of_config(config)]
    classes = {type(part).__name__.lower() for part in model.modules()}
    found += [words for part, words in _MODULES.items() if any(part in one for one in classes)]
    names = [name.lower() for name, _ in model.named_parameters()]
    found += [words for part, words in _PARAMETERS.items() if any(part in one for one in names)]
    return ", ".join(dict.fromkeys(found))


def _of_config(config: Any) -> list[str]:
    """What only the config tells."""

    def given(name: str) -> Any:
        return getattr(config, name, None)

    found = []
    kinds = str(given("layer_types") or given("layers_block_type") or given("attention_layers"))
    sliding = given("sliding_window") or given("sliding_window_size") or given("local_attention")
    if sliding and ("sliding" in kinds or kinds == "None"):
        found.append(f"window of {sliding}")
    for name in ("window_size", "attention_window_size"):
        if given(name):
            found.append(f"window of {given(name)}")
    if "chunked" in kinds:
        found.append(f"chunks of {config.attention_chunk_size}")
    if given("attn_logit_softcapping"):
        found.append("softcap")
    if given("floor_scale") or given("log_scaling_n_floor"):
        found.append("scale by position")
    if given("kv_lora_rank") and given("v_head_dim"):
        found.append("keys wider than values")
    if given("num_kv_shared_layers"):
        found.append("keys and values of earlier layers")
    if given("alibi") is True or config.model_type in ("bloom", "mpt"):
        found.append("ALiBi")
    return found
