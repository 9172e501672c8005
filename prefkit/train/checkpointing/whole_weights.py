"""Loads all weights of a checkpoint, also of models that are saved under other names than theirs.

Mixtures of experts are saved as their family's files have them, an expert a tensor, and hold all
experts of a layer in one. `from_pretrained` converts the names; Trainer does not when it goes on
from a checkpoint or takes the best one, and leaves what it does not find as it is.
"""

from typing import Any

from prefkit.errors import ModelError
from prefkit.model.head.fused import unwrap


def load_missing(model: Any, missing: list[str], folder: str | None) -> None:
    """Loads what Trainer did not find in a checkpoint, looking under the converted names.

    Args:
        model: what Trainer has loaded the checkpoint into; wrapped or not.
        missing: names that it did not find.
        folder: the checkpoint.

    Raises:
        ModelError: weights of the model are in no file of the checkpoint.
    """
    model = unwrap(model)
    model.tie_weights()  # a tied weight is saved once
    tied = set(getattr(model, "all_tied_weights_keys", None) or model._tied_weights_keys or ())
    names = {name.removeprefix("module.") for name in missing} - tied
    if not names:
        return
    assert folder is not None
    first = next(model.parameters())
    whole = type(model).from_pretrained(folder, dtype=first.dtype)
    found = whole.state_dict()
    lost = sorted(names - set(found))
    if lost:
        raise ModelError(
            f"{folder} holds no weights for {', '.join(lost[:3])}"
            + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
            + ". Start from a checkpoint of this model."
        )
    model.load_state_dict(found)
