"""A translation in one call, and small configs of each trainer."""

from collections.abc import Mapping
from typing import Any

from prefkit.cli import train
from prefkit.cli.config_file import checked, names_of_transformers
from prefkit.convert.engine import Translation, named_trainer, translate

COMMAND = train.whole(train.COMMAND)
INHERITED = names_of_transformers()
# What each trainer needs to be asked for pairs at all.
LEAST: Mapping[str, dict[str, Any]] = {
    "trl": {"model_name_or_path": "m", "dataset_name": "d"},
    "llamafactory": {"model_name_or_path": "m", "stage": "dpo", "do_train": True},
    "axolotl": {"base_model": "m", "rl": "dpo", "learning_rate": 1e-5},
}


def translated(trainer: str, **config: Any) -> Translation:
    """A config with the least that the trainer needs; what prefkit train refuses is refused."""
    given = LEAST[trainer] | config
    return checked(translate(named_trainer(trainer), given, COMMAND, INHERITED))


def options(trainer: str, **config: Any) -> dict[str, Any]:
    """The options of a config of which nothing is refused."""
    translation = translated(trainer, **config)
    assert [line.key for line in translation.of_kind("refused")] == []
    return dict(translation.options)


def refused(trainer: str, **config: Any) -> dict[str, str]:
    """Refused key → reason and remedy."""
    lines = translated(trainer, **config).of_kind("refused")
    return {line.key: f"{line.why}. {line.remedy}" for line in lines}


def left(trainer: str, **config: Any) -> dict[str, str]:
    """Key that is left out → reason."""
    return {line.key: line.why for line in translated(trainer, **config).of_kind("left out")}
