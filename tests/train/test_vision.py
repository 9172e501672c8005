"""Vision-language models: trained on text alone; images are refused with the trainer for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessor, LlavaProcessor
from transformers.models.gemma3 import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from prefkit import PreferenceTrainer
from prefkit.errors import ConfigError, ModelError, RowError
from tests.train.trainer_cases import (
    ROWS,
    SHAPE,
    VOCAB,
    byte_tokenizer,
    config,
    logs_of,
    trainer,
    weights_of,
)

ELSEWHERE = r"prefkit\.integrations\.trl\.DPOTrainer"
TEXT = {**SHAPE, "vocab_size": VOCAB}


def gemma() -> Any:
    eye = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    eye |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=TEXT, vision_config=eye, mm_tokens_per_image=4)
    )


def qwen() -> Any:
    eye = {"hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**TEXT, "rope_parameters": rope},
            vision_config={**eye, "out_hidden_size": 16, "patch_size": 14},
        )
    )


@pytest.mark.parametrize("make", [gemma, qwen])
def test_a_vision_language_model_trains_on_text(make: Any, tmp_path: Path) -> None:
    """Loss and steps are those of padded rows, which the model reads as it reads any text."""
    seen = []
    for options in ({}, {"disable_dropout": False}):  # rows without padding have no dropout
        trained = trainer(tmp_path, make(), **options)
        before = weights_of(trained.model)
        trained.train()
        after = weights_of(trained.model)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved
        assert not any("vision" in name or "visual" in name for name in moved)
        seen.append([line["loss"] for line in logs_of(trained)])
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)
    assert seen[0][-1] < seen[0][0]


def test_images_are_refused_with_the_trainer_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=f"row 1, field 'images'.*{ELSEWHERE}"):
        trainer(tmp_path, gemma(), rows=[ROWS[0], {**ROWS[1], "images": ["a.png"]}])
    picture = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    row = {
        "prompt": [{"role": "user", "content": picture}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    }
    with pytest.raises(RowError, match=f"type 'image'.*{ELSEWHERE}"):
        trainer(tmp_path, gemma(), rows=[row])


def test_a_processor_is_refused_for_its_tokenizer(tmp_path: Path) -> None:
    processor = LlavaProcessor(CLIPImageProcessor(), byte_tokenizer())
    words = rf"is a LlavaProcessor.*processor\.tokenizer.*{ELSEWHERE}"
    with pytest.raises(ConfigError, match=words):
        PreferenceTrainer(
            gemma(), args=config(tmp_path), train_dataset=ROWS, processing_class=processor
        )


def test_a_name_that_is_no_causal_model_s_is_told_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    qwen().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{ELSEWHERE}.*AutoModelForImageTextToText"):
        PreferenceTrainer(str(folder), args=config(tmp_path / "out"), train_dataset=ROWS)
