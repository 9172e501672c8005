"""The last stages of `prefkit build cdpo`: two models from the selected solutions, then weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.critical_tokens.contrast import (
    NEGATIVE,
    POSITIVE,
    ContrastModels,
    ContrastSettings,
    train_two_models,
)
from prefkit.critical_tokens.fields import ScoreFields
from prefkit.critical_tokens.scoring import score_pairs
from prefkit.files.atomic import write_text
from prefkit.pairs.run.fields import BuildFields

Row = dict[str, Any]


def weigh(
    rows: list[Row], outcomes: Sequence[Row], options: BuildFields, folder: Path
) -> tuple[list[Row], dict[str, Any]]:
    """Weighs every token of the rejected sides by 1 − s_t (arXiv 2411.19943, eq. 9).

    Args:
        rows: the pairs.
        outcomes: of all questions, with the solutions selected for both models.
        options: of the build.
        folder: of the build; the models are kept in its `contrast`.

    Returns:
        The rows with `rejected_weights`, and what the manifest says of the two models and of rows
        that could not be weighed. With `shard`, or without `weigh`, the rows as they are.

    Raises:
        PrefkitError: not one right, or not one wrong solution was sampled.
    """
    selected = {name: _selected(outcomes, name) for name in (POSITIVE, NEGATIVE)}
    for name, chosen in selected.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        write_text(folder / f"{name}.jsonl", lines)
    if options.shard is not None or not options.weigh:
        return rows, {"weighted": False}
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


def _selected(outcomes: Sequence[Row], name: str) -> list[Row]:
    return [row for outcome in outcomes for row in outcome["extra"].get(name, ())]


def _train(selected: dict[str, list[Row]], options: BuildFields, folder: Path) -> ContrastModels:
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
