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


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["chosen_weights", "rejected_weights"], "beside them chosen_weights, rejected_weights"),
        (["prefix"], "beside them prefix: TRL leaves such rows"),
    ],
)
def test_what_no_collator_reads_is_refused(
    columns: list[str], message: str, made: Any, tmp_path: Path
) -> None:
    """In the constructor, and in rows that are evaluated later."""
    from benchmarks.trl_suite.rows import one_image
    from prefkit.errors import ConfigError

    model, processor = made("tiny-LlavaForConditionalGeneration")
    plain = odd = one_image()
    for name in columns:
        odd = odd.add_column(name, ["So "] * len(odd) if name == "prefix" else [[0.0]] * len(odd))
    options = {"max_length": None, "per_device_train_batch_size": 2, **QUIET}
    given = {"args": trl.DPOConfig(str(tmp_path), **options), "processing_class": processor}
    models = {"model": copy.deepcopy(model), "ref_model": copy.deepcopy(model)}
    for datasets in ({"train_dataset": odd}, {"train_dataset": plain, "eval_dataset": {"a": odd}}):
        with pytest.raises(ConfigError, match=message):
            ours()(**models, **given, **datasets)
    whole = ours()(**models, **given, train_dataset=plain)
    with pytest.raises(ConfigError, match=message):
        whole.evaluate(odd)
