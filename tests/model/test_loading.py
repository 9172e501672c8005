"""What a model's config tells before its weights are loaded."""

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, XLNetConfig

from prefkit.model.loading import positions_of


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=256), 256),
        (GPT2Config(n_positions=128), 128),
        (XLNetConfig(), None),  # -1 there
        (BloomConfig(), None),  # no such field
    ],
)
def test_positions_of_a_model(config: object, positions: int | None) -> None:
    assert positions_of(config) == positions
