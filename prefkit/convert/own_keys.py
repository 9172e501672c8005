"""Keys of prefkit's own rooms in other trainers: of `prefkit.integrations.trl` and `.axolotl`."""

from prefkit.convert.draft import Draft

PLUGIN = "prefkit.integrations.axolotl"
_METHODS = ("tdpo1", "tdpo2")
_ENDS = ("append_eos", "prefkit_append_eos")
_START = "prefkit_"
OWN = f"{_START} append_eos"  # how the keys begin that TRL's configs may have


def names_method(draft: Draft) -> bool:
    """Whether prefkit_method names a loss of its own, and not the trainer's keys."""
    return draft.get("prefkit_method") in _METHODS


def write_own(draft: Draft) -> None:
    """What prefkit's keys beside those of the trainer mean in `prefkit train`."""
    for key in draft.open_keys_of(lambda name: name in _ENDS or name.startswith(_START)):
        value = draft[key]
        if value is None:
            draft.leave(key, "it is empty")
        elif key == "prefkit_method" and value == "dpo":
            draft.leave(key, "the trainer's own keys name the loss")
        elif key == "prefkit_method":
            draft.write(key, {"method": value}, is_loss=True)
        elif key == "prefkit_alpha" and draft.get("prefkit_method") == "tdpo2":
            draft.write(key, {"alpha": value})
        elif key == "prefkit_alpha":
            draft.refuse(key, "only prefkit_method tdpo2 reads it", "Remove it, or set the method.")
        elif key in _ENDS:
            _ends(draft, key)
        elif key == "prefkit_layout" and value == "shared":
            draft.write(key, {"layout": "shared"})
        elif key == "prefkit_layout" and value in ("auto", "padded"):
            draft.leave(key, "it changes how rows are read, not what is learnt")
        elif key == "prefkit_memory_budget":
            draft.write(key, {"memory_budget": value})
        else:
            draft.refuse(key, "prefkit has no such key", "Correct or remove it.")


def _ends(draft: Draft, key: str) -> None:
    if draft[key] == "auto":
        draft.leave(key, "rows with a prefix are steps with level: step, and have no end")
    else:
        remedy = "Give the rows a column append_eos, and remove it."
        draft.refuse(key, "prefkit train ends whole solutions, and no steps", remedy)
