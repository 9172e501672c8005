"""axolotl's keys that are read together: loss, batches, schedule, files and reports."""

import difflib
from collections.abc import Mapping
from typing import Any

from prefkit.convert.draft import Draft
from prefkit.convert.loss import LossKeys, equal_sides, write_losses
from prefkit.convert.own_keys import PLUGIN, names_method
from prefkit.errors import ConfigError

_EXCESS = {"drop": "skip", "truncate": "truncate_end", "raise": "error"}
LOGGERS = {
    "use_wandb": "wandb",
    "use_mlflow": "mlflow",
    "use_tensorboard": "tensorboard",
    "use_comet": "comet_ml",
    "use_trackio": "trackio",
}
RUN_NAMES = ("wandb_name", "mlflow_run_name", "trackio_run_name")
_STEPS = "gradient_accumulation_steps"


def loss(draft: Draft) -> None:
    kind = draft["rl"]
    if kind not in ("dpo", "ipo", "simpo", "orpo"):
        raise ConfigError(
            f"rl is {kind!r}; prefkit train learns from pairs, as rl: dpo, ipo, simpo or orpo. "
            "(Solutions: prefkit.SupervisedTrainer. KTO: method kto, whose rows are prompt, "
            "completion and label; docs/data.md.)"
        )
    if kind == "dpo":
        if names_method(draft):
            draft.leave("rl", "prefkit_method rules")
        else:
            draft.write("rl", {"method": "dpo"})
        write_losses(draft, LossKeys("dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing"))
    else:
        options = {"method": "dpo", "loss_type": "ipo"} if kind == "ipo" else {"method": kind}
        why = "TRL's ORPO also counts the prompt in its likelihood" if kind == "orpo" else ""
        draft.write("rl", options, why, is_loss=True)
        for key in ("dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing"):
            draft.leave(key, f"it belongs to rl: dpo, not {kind}")
    _simpo(draft, kind)
    _beta(draft)


def _simpo(draft: Draft, kind: str) -> None:
    """CPO's trainer adds a likelihood term to SimPO unless cpo_alpha is 0."""
    if kind != "simpo":
        for key in ("simpo_gamma", "cpo_alpha"):
            draft.leave(key, "it belongs to rl: simpo")
        return
    if draft["simpo_gamma"] is None:
        remedy = "Give it; axolotl fails without it as well."
        draft.refuse("simpo_gamma", "SimPO needs its target margin", remedy)
    else:
        draft.write("simpo_gamma", {"margin": draft["simpo_gamma"]})
    if draft["cpo_alpha"] in (0, 0.0):
        draft.leave("cpo_alpha", "it is off")
    else:
        why = "TRL adds a likelihood over the batch's tokens, which no loss of prefkit does"
        draft.refuse("cpo_alpha", why, "Set cpo_alpha: 0 for SimPO as it was published.")


def _beta(draft: Draft) -> None:
    """trl.beta before the others, in this order; TRL's own where none is given."""
    names = ("rl_beta", "dpo_beta", "orpo_alpha")
    ruling = next((key for key in names if draft.given.get(key) is not None), "rl_beta")
    for inner in draft.inner("trl", {}):
        for key in inner.open_keys():
            if key == "beta" and inner[key] is not None:
                inner.write(key, {"beta": inner[key]})
                ruling = "trl"
            else:
                inner.leave(key, "it is read by methods that sample")
    for key in names:
        if key == ruling:
            draft.write(key, {"beta": draft[key]})
        else:
            draft.leave(key, "it is off" if draft[key] is None else f"{ruling} rules")


def length(draft: Draft) -> None:
    draft.write("sequence_len", {"max_length": draft["sequence_len"]})
    strategy = str(draft["excess_length_strategy"] or "drop").lower()
    options = {"too_long": _EXCESS.get(strategy, strategy), "equal": "skip"}
    draft.write("excess_length_strategy", options, equal_sides("axolotl"))


def batch(draft: Draft) -> None:
    """batch_size is micro_batch_size times gradient_accumulation_steps."""
    micro, steps, whole = (draft[key] for key in ("micro_batch_size", _STEPS, "batch_size"))
    draft.write("micro_batch_size", {"per_device_train_batch_size": micro})
    if steps is None and whole:
        draft.write("batch_size", {_STEPS: whole // (micro or 1)})
        draft.leave(_STEPS, "batch_size says it")
    else:
        draft.leave("batch_size", "gradient_accumulation_steps says it" if whole else "it is off")
        draft.write(_STEPS, {_STEPS: steps or 1})


def schedule(draft: Draft) -> None:
    """Steps until the peak, and the cosine's end."""
    kind, least = draft["lr_scheduler"] or "cosine", draft["cosine_min_lr_ratio"]
    if least and kind == "cosine":
        rate = {"lr_scheduler_kwargs": {"min_lr_rate": least}}
        draft.write("lr_scheduler", {"lr_scheduler_type": "cosine_with_min_lr"})
        draft.write("cosine_min_lr_ratio", rate)
        draft.leave("lr_scheduler_kwargs", "cosine_min_lr_ratio rules")
    else:
        _of_transformers(draft, "lr_scheduler", "lr_scheduler_type", kind)
        draft.leave("cosine_min_lr_ratio", "it is off, or belongs to cosine")
        if draft["lr_scheduler_kwargs"]:
            options = {"lr_scheduler_kwargs": draft["lr_scheduler_kwargs"]}
            draft.write("lr_scheduler_kwargs", options)
        else:
            draft.leave("lr_scheduler_kwargs", "it is empty")
    _warmup(draft)


def _of_transformers(draft: Draft, key: str, option: str, value: Any) -> None:
    """An optimiser or a schedule; axolotl has more of them than transformers."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    names = [one.value for one in (OptimizerNames if option == "optim" else SchedulerType)]
    if value in names:
        draft.write(key, {option: value})
    else:
        near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.3)
        remedy = f"Choose another, such as {', '.join(near or names[:3])}."
        draft.refuse(key, f"transformers has no {value}", remedy)


def _warmup(draft: Draft) -> None:
    steps, share = draft["warmup_steps"], draft["warmup_ratio"]
    if steps is not None:
        draft.write("warmup_steps", {"warmup_steps": 2 if steps == 1 else steps})
        draft.leave("warmup_ratio", "warmup_steps rules")
        return
    draft.leave("warmup_steps", "warmup_ratio says it")
    limit = "axolotl stops at 100 steps" if share is None else ""
    draft.write("warmup_ratio", {"warmup_steps": 0.03 if share is None else share}, limit)


def saving(draft: Draft) -> None:
    """Checkpoints: every so many steps, or a share of the run, or at each epoch."""
    steps, share = draft["save_steps"], share_of_run(draft, "saves_per_epoch")
    if steps:
        draft.write("save_steps", {"save_strategy": "steps", "save_steps": steps})
        draft.leave("saves_per_epoch", "save_steps rules")
    else:
        draft.leave("save_steps", "it is off")
        if share:
            options = {"save_strategy": "steps", "save_steps": share}
            draft.write("saves_per_epoch", options)
        else:
            draft.leave("saves_per_epoch", "it comes to one of the whole run")
    if steps or share:
        draft.leave("save_strategy", "steps rule")
    else:
        draft.write("save_strategy", {"save_strategy": draft["save_strategy"] or "epoch"})


def share_of_run(draft: Draft, key: str) -> float | None:
    """The share of the run after which something is done again; None for all of it, or more."""
    often = draft[key]
    share = 1 / (often * draft["num_epochs"]) if often else 1
    return share if share < 1 else None


def reports(draft: Draft) -> None:
    """Loggers; a project of wandb's turns wandb on."""
    wandb = bool(draft["use_wandb"] or draft["wandb_project"])
    on = [name for key, name in LOGGERS.items() if draft[key] or (key == "use_wandb" and wandb)]
    first = True
    for key in (*LOGGERS, "wandb_project"):
        chosen = bool(draft[key]) and bool(on)
        if chosen and first:
            hint = "WANDB_PROJECT names the project" if key == "wandb_project" else ""
            draft.write(key, {"report_to": on}, hint)
            first = False
        else:
            draft.leave(key, "report_to says it" if chosen else "it is off")
    named = [key for key in RUN_NAMES if draft[key]]
    for key in RUN_NAMES:
        if named and key == named[0] and on:
            draft.write(key, {"run_name": draft[key]})
        else:
            draft.leave(key, "it is off")


def hub(draft: Draft) -> None:
    name = draft["hub_model_id"]
    pushed = {"hub_model_id": name, "push_to_hub": True, "hub_private_repo": True}
    if name:
        draft.write("hub_model_id", pushed)
    else:
        draft.leave("hub_model_id", "it is off")


def optimiser(draft: Draft) -> None:
    given = draft["optim_args"]
    _of_transformers(draft, "optimizer", "optim", draft["optimizer"] or "adamw_torch_fused")
    if isinstance(given, Mapping):
        given = ",".join(f"{name}={value}" for name, value in given.items())
    if given:
        draft.write("optim_args", {"optim_args": given})
    else:
        draft.leave("optim_args", "it is empty")


def plugins(draft: Draft) -> None:
    harmless = ("liger", "cut_cross_entropy", "swanlab", "kernels", PLUGIN)
    others = [name for name in draft["plugins"] or [] if not any(h in name for h in harmless)]
    if others:
        draft.refuse("plugins", f"prefkit does not know {', '.join(others)}", "Remove them.")
    else:
        draft.leave("plugins", "they change how a run is computed or logged")
