"""A tokenizer of bytes, tiny random models of several families, and rows to train them on."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.cohere import CohereConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_oss import GptOssConfig
from transformers.models.granite import GraniteConfig
from transformers.models.granitemoe import GraniteMoeConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mixtral import MixtralConfig
from transformers.models.olmoe import OlmoeConfig
from transformers.models.qwen3_moe import Qwen3MoeConfig

from prefkit import PreferenceConfig, PreferenceTrainer

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
VOCAB = 264  # 256 bytes, two specials, six rows of padding

CONFIGS: dict[str, Any] = {
    "llama": lambda **kw: LlamaConfig(**{**SHAPE, "vocab_size": VOCAB, **kw}),
    "llama-tied": lambda **kw: LlamaConfig(
        **{**SHAPE, "vocab_size": VOCAB, "tie_word_embeddings": True, **kw}
    ),
    "gemma2": lambda **kw: Gemma2Config(
        **{**SHAPE, "vocab_size": VOCAB, "final_logit_softcapping": 3.0, **kw}
    ),
    "cohere": lambda **kw: CohereConfig(
        **{**SHAPE, "vocab_size": VOCAB, "logit_scale": 0.0625, **kw}
    ),
    "granite": lambda **kw: GraniteConfig(
        **{**SHAPE, "vocab_size": VOCAB, "logits_scaling": 8.0, **kw}
    ),
    "gpt2": lambda **kw: GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=256, eos_token_id=256, **kw
    ),
}

MOE: dict[str, Any] = {
    "mixtral": lambda **kw: MixtralConfig(
        **{**SHAPE, "vocab_size": VOCAB, "num_local_experts": 4, **kw}
    ),
    "qwen3-moe": lambda **kw: Qwen3MoeConfig(
        **{**SHAPE, "vocab_size": VOCAB, "num_experts": 5, "num_experts_per_tok": 3, **kw},
        moe_intermediate_size=16,
    ),
    "olmoe": lambda **kw: OlmoeConfig(
        **{**SHAPE, "vocab_size": VOCAB, "num_experts": 4, "num_experts_per_tok": 2, **kw}
    ),
    "gpt-oss": lambda **kw: GptOssConfig(
        **{**SHAPE, "vocab_size": VOCAB, "num_local_experts": 4, "num_experts_per_tok": 2, **kw}
    ),
    "granite-moe": lambda **kw: GraniteMoeConfig(
        **{**SHAPE, "vocab_size": VOCAB, "num_local_experts": 4, "num_experts_per_tok": 2, **kw}
    ),
}

ROWS = [
    {"prompt": f"{a}+{b}=", "chosen": f" {a + b}", "rejected": f" {a + b + 1}, surely"}
    for a in range(6)
    for b in range(4)
]


# Four pairs of each question: two right answers, each beside two wrong ones.
TREE_ROWS = [
    {"prompt": f"{a}+{a}=", "chosen": right, "rejected": wrong}
    for a in range(12)
    for right in (f" {2 * a}", f" {2 * a}, surely")
    for wrong in (f" {2 * a + 1}", f" {2 * a + 1}, or so")
]


def tiny_model(family: str = "llama", seed: int = 0, scale: float = 1.0, **changes: Any) -> Any:
    """A random model; `scale` widens its weights so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    # fp32, eager or sdpa as the family defaults to
    model = AutoModelForCausalLM.from_config({**CONFIGS, **MOE}[family](**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token (0..255), `<eos>` 256, `<pad>` 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", model_max_length=256
    )


def save_model(folder: Path, family: str = "llama", **changes: Any) -> str:
    """A tiny model with its tokenizer as a folder."""
    tiny_model(family, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def run_options(folder: Path) -> dict[str, Any]:
    """Options of a short quiet run, of any Trainer."""
    return {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
    }


def config(folder: Path, **changes: Any) -> PreferenceConfig:
    return PreferenceConfig(**{**run_options(folder), **changes})


def trainer(folder: Path, model: Any = None, rows: Any = None, **changes: Any) -> PreferenceTrainer:
    """A trainer on a tiny model; arguments of the trainer itself are told from options by name."""
    names = ("ref_model", "eval_dataset", "callbacks", "compute_metrics")
    names += ("quantization_config", "peft_config")
    own = {name: changes.pop(name) for name in names if name in changes}
    return PreferenceTrainer(
        tiny_model() if model is None else model,
        args=config(folder, **changes),
        train_dataset=ROWS if rows is None else rows,
        processing_class=byte_tokenizer(),
        **own,
    )


def logs_of(trained: PreferenceTrainer, key: str = "loss") -> list[dict[str, float]]:
    """The log lines that hold a key."""
    return [line for line in trained.state.log_history if key in line]


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}
