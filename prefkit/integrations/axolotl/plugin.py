"""The plugin that axolotl loads."""

from typing import Any

from axolotl.integrations.base import BasePlugin
from axolotl.utils.logging import get_logger

from prefkit.errors import ConfigError
from prefkit.integrations.axolotl.args import settings_of

# axolotl shows information under its own name alone.
LOG = get_logger("axolotl.prefkit")


class PrefkitPlugin(BasePlugin):
    """Gives axolotl's DPO trainer prefkit's head, through the `trl.DPOTrainer` that it is made of.

    TRL is patched, because a class of `get_trainer_cls` would be made without its models.
    """

    def get_input_args(self) -> str:
        """Where the keys of the YAML file are declared."""
        return "prefkit.integrations.axolotl.args.PrefkitArgs"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """Patches TRL right before the trainer is made, when axolotl's own patches are in.

        Returns:
            No callback.
        """
        from prefkit.integrations.trl import patch

        patch(**settings_of(cfg))
        return []

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Says what prefkit computes; where it leaves the loss to TRL, that has been said.

        Raises:
            ConfigError: the trainer's loss does not name the one that it replaces.
        """
        _check_class(trainer)
        if trainer.prefkit_fallback is None:
            LOG.info(_words(trainer))
        if too_long := _too_long(trainer):
            LOG.warning(
                "%d of %d rows are longer than sequence_len with their prefix, which axolotl does "
                "not count: TRL cuts off their ends. Raise sequence_len, or shorten the rows.",
                too_long,
                len(trainer.train_dataset),
            )

    def post_train_unload(self, cfg: Any) -> None:
        """Leaves TRL as it was, for whatever this process does next."""
        from prefkit.integrations.trl import unpatch

        unpatch()


def _check_class(trainer: Any) -> None:
    """Refuses a trainer whose loss is not that of TRL's `DPOTrainer`, which is what is patched.

    Raises:
        ConfigError: see above.
    """
    from prefkit.integrations.trl.acceleration import has_own_loss

    if has_own_loss(type(trainer)):
        raise ConfigError(
            f"prefkit's plugin gives trl.DPOTrainer its head, and the trainer here, a "
            f"{type(trainer).__name__}, has a loss that does not name the one that it replaces. "
            "Remove trainer_cls or the plugin that brings it, or remove prefkit's."
        )


def _words(trainer: Any) -> str:
    """What prefkit computes."""
    method = trainer._prefkit.settings.method
    loss = ", ".join(trainer.loss_types) if method == "dpo" else method
    return f"prefkit computes the loss ({loss}) without forming logits."


def _too_long(trainer: Any) -> int:
    """How many rows with a prefix are longer than what the collator keeps of them."""
    from datasets import Dataset

    from prefkit.integrations.trl.rows import PREFIXES, lengths_of

    dataset, most = trainer.train_dataset, trainer.args.max_length
    if most is None or not isinstance(dataset, Dataset):  # nobody counts the rows of a stream
        return 0
    if not set(PREFIXES) & set(dataset.column_names):
        return 0
    return int((lengths_of(dataset) > most).sum())
