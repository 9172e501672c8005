"""Small models that read images, with their processors, under the names that TRL's tests use.

Qwen's processors need torchvision, for videos; without it their stand-ins cannot be made.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.trl_suite.tokenizers import tokenizer

_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}
_EYES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + '\\n' }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part['text'] + '\\n' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def _llava(next_: bool) -> tuple[Any, Any]:
    reader = tokenizer(None, "</s>", {"image_token": "<image>"})
    reader.chat_template = _LLAVA_TEMPLATE
    size = {"height": 28, "width": 28}
    common = {
        "text_config": transformers.LlamaConfig(vocab_size=len(reader), **_TEXT),
        "vision_config": transformers.CLIPVisionConfig(**_EYES, projection_dim=16),
        "image_token_index": reader.image_token_id,
    }
    sees = {"patch_size": 14, "vision_feature_select_strategy": "default", "image_token": "<image>"}
    if next_:
        grid = [[28, 56], [56, 28], [56, 56]]
        model = transformers.LlavaNextForConditionalGeneration(
            transformers.LlavaNextConfig(image_grid_pinpoints=grid, image_seq_length=4, **common)
        )
        eyes = transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size=size, image_grid_pinpoints=grid
        )
        kind: Any = transformers.LlavaNextProcessor
    else:
        model = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(image_seq_length=4, **common)
        )
        eyes = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
        kind = transformers.LlavaProcessor
    # The class embedding is one more, which the model leaves out.
    made = kind(eyes, reader, num_additional_image_tokens=1, chat_template=_LLAVA_TEMPLATE, **sees)
    return model, made


def _gemma3() -> tuple[Any, Any]:
    marks = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    reader = tokenizer("gemma3", "<end_of_turn>", marks)
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config={**_TEXT, "vocab_size": len(reader)},
            vision_config={**_EYES, "image_size": 56, "vision_use_head": False},
            mm_tokens_per_image=4,
            boi_token_index=reader.boi_token_id,
            eoi_token_index=reader.eoi_token_id,
            image_token_index=reader.image_token_id,
        )
    )
    eyes = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    template = reader.chat_template
    made = transformers.Gemma3Processor(eyes, reader, chat_template=template, image_seq_length=4)
    return model, made


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "tiny-Gemma3ForConditionalGeneration": _gemma3,
    "tiny-LlavaForConditionalGeneration": lambda: _llava(next_=False),
    "tiny-LlavaNextForConditionalGeneration": lambda: _llava(next_=True),
}


def made(name: str) -> tuple[Any, Any]:
    """Model and processor of one of `MAKERS`, with the special ids in the model's config."""
    torch.manual_seed(0)
    model, processor = MAKERS[name]()
    config, reader = model.config.get_text_config(), processor.tokenizer
    config.pad_token_id, config.bos_token_id = reader.pad_token_id, reader.bos_token_id
    config.eos_token_id = reader.eos_token_id
    return model, processor
