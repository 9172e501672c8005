"""The last stage of `prefkit build cdpo`: two models from the selected solutions, then weights.

from prefkit.critical_tokens import weigh
build("cdpo", "questions.jsonl", model="MODEL", out="pairs", last_stage=weigh)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.critical_tokens.contrast import ContrastModels, ContrastSettings, train_two_models
from prefkit.critical_tokens.fields import ScoreFields
from prefkit.critical_tokens.scoring import score_pairs
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.pipelines.cdpo import NEGATIVE, POSITIVE
from prefkit.pairs.run.build import Row


def weigh(
    rows: list[Row], selected: Mapping[str, list[Row]], options: BuildFields, folder: Path
) -> tuple[list[Row], dict[str, Any]]:
    """Weights every token of the rejected responses by 1 − s_t (arXiv 2411.19943, eq. 9).

    Args:
        rows: the pairs.
        selected: the solutions for both models, "positive" and "negative".
        options: of the build.
        folder: of the build; the models are kept in its `contrast`.

    Returns:
        The rows with `rejected_weights`, and what the manifest says of the two models and of rows
        that could not be weighed.

    Raises:
        PrefkitError: not one right, or not one wrong solution was sampled.
    """
    models = _train(selected, options, folder)
    scored = score_pairs(
        rows,
        str(models.positive),
        str(models.negative),
        ScoreFields(
            beta=options.contrast_beta,
            batch_size=options.contrast_device_batch_size or options.contrast_batch_size,
            dtype="bfloat16" if options.contrast_bf16 else "float32",
            too_long="skip",  # counted below: one row must not stop the last stage
            on_bad_row="skip",
            **options.prompt_options(),
        ),
        work_file=folder / "scores.work",
        progress=True,
    )
    left_out = {f"pairs not weighed: {why}": n for why, n in scored.skipped.items()}
    return scored.rows, {
        "weighted": True,
        "contrast": models.records(),
        "drops": left_out,
    }


def _train(selected: Mapping[str, list[Row]], options: BuildFields, folder: Path) -> ContrastModels:
    settings = ContrastSettings(
        adapter=options.contrast_adapter,
        lora_r=options.contrast_lora_r,
        lora_alpha=options.contrast_lora_alpha,
        learning_rate=options.contrast_learning_rate,
        epochs=options.contrast_epochs,
        batch_size=options.contrast_batch_size,
        device_batch_size=options.contrast_device_batch_size,
        bf16=options.contrast_bf16,
        seed=options.seed,
        text=options.prompt_options(),
    )
    return train_two_models(
        selected[POSITIVE],
        selected[NEGATIVE],
        options.model,
        folder / "contrast",
        settings,
        progress=True,
    )
