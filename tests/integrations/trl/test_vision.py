"""Models that read images: TRL's collator and inputs, prefkit's head."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.trl.cases import QUIET, check_step, one_step, ours, theirs, trl

pytest.importorskip("PIL", reason="Pillow is not installed")


@pytest.fixture(scope="module")
def made() -> Any:
    """Name → (model, processor, a reference that is moved away)."""
    from benchmarks.trl_suite import vision

    return vision.made


@pytest.mark.parametrize("kind", ["Llava", "LlavaNext", "Gemma3"])
def test_the_numbers_are_trls(kind: str, made: Any, tmp_path: Path) -> None:
    import torch

    from benchmarks.trl_suite.rows import one_image

    model, processor = made(f"tiny-{kind}ForConditionalGeneration")
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    steps = []
    for trainer in (ours(), theirs()):
        one = trainer(
            copy.deepcopy(model),
            ref_model=copy.deepcopy(reference),
            args=trl.DPOConfig(
                output_dir=str(tmp_path), max_length=None, per_device_train_batch_size=2, **QUIET
            ),
            train_dataset=one_image(),
            processing_class=processor,
        )
        steps.append(one_step(one))
    assert one._is_vision_dataset
    assert steps[0][0] != pytest.approx(0.6931, abs=1e-4)
    check_step(*steps)
