"""Options of `transformers.TrainingArguments` that need a word; all others have the same name here.

Names that earlier versions had are read as what became of them.
"""

from prefkit.convert.draft import Draft
from prefkit.convert.rules import By, Left, Refused, Rule, To

_OWN_COLUMNS = "prefkit makes the columns of its batches itself"
_GONE = "transformers took it away"
_GENERATES = "no text is generated in a preference run"
# Options that prefkit refuses where nothing is evaluated, and that transformers then passes over.
_OF_EVALUATION = (
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "batch_eval_metrics",
)


def evaluates(draft: Draft) -> bool:
    """Whether the run evaluates; YAML reads a bare no as false."""
    said = draft.get("eval_strategy") or draft.get("evaluation_strategy") or "no"
    return str(said).lower() != "no"


def _evaluation(draft: Draft) -> None:
    for key in _OF_EVALUATION:
        if not draft.is_open(key):
            continue
        if evaluates(draft):
            draft.write(key, {key: draft[key]})
        else:
            draft.leave(key, "nothing is evaluated (eval_strategy is no)")


def _warmup(draft: Draft) -> None:
    """A share of the run below 1 and steps are one option; transformers gives steps the rule."""
    share, steps = draft.get("warmup_ratio"), draft.get("warmup_steps")
    if draft.is_open("warmup_steps") and share and not steps:
        draft.leave("warmup_steps", "warmup_ratio says it")
    elif draft.is_open("warmup_steps"):
        draft.write("warmup_steps", {"warmup_steps": steps or 0})
    if draft.is_open("warmup_ratio"):
        if steps or not share:
            draft.leave("warmup_ratio", "warmup_steps rules" if steps else "it is 0")
        else:
            draft.write("warmup_ratio", {"warmup_steps": share})


_SHARE = "Use warmup_steps: a number below 1 is a share of the run."
TRANSFORMERS: dict[str, Rule] = {
    # -- evaluation ---------------------------------------------------------------------------
    "evaluation_strategy": To("eval_strategy"),
    **dict.fromkeys(_OF_EVALUATION, By(_evaluation, "It is an option of evaluation.")),
    "do_train": Refused("the run is to train nothing", "Remove it.", (True, None)),
    "do_eval": Left("eval_strategy says when to evaluate"),
    "do_predict": Left(_GENERATES),
    # -- learning rate ------------------------------------------------------------------------
    "warmup_steps": By(_warmup, _SHARE),
    "warmup_ratio": By(_warmup, _SHARE),
    "adafactor": To("optim", {True: "adafactor", False: "adamw_torch"}),
    "group_by_length": To(
        "train_sampling_strategy", {True: "group_by_length", False: "random", None: "random"}
    ),
    # -- machine ------------------------------------------------------------------------------
    "no_cuda": To("use_cpu"),
    "use_mps_device": Left("the device is found by itself"),
    "per_gpu_train_batch_size": To("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": To("per_device_eval_batch_size"),
    "half_precision_backend": Left(_GONE),
    "fp16_backend": Left(_GONE),
    "fp16_opt_level": Left(_GONE),
    "xpu_backend": To("ddp_backend"),
    "use_ipex": Left(_GONE),
    "jit_mode_eval": Left(_GONE),
    "mp_parameters": Left(_GONE),
    "past_index": Left(_GONE),
    "ray_scope": Left(_GONE),
    "torchdynamo": Left(_GONE),
    "tpu_num_cores": Left("the launcher says how many processes there are"),
    "tpu_metrics_debug": Left(_GONE),
    "use_legacy_prediction_loop": Left(_GONE),
    "fsdp_min_num_params": Left("FSDP2 shards by layer"),
    "fsdp_transformer_layer_cls_to_wrap": Left("the model tells which of its modules are layers"),
    # -- rows ---------------------------------------------------------------------------------
    "remove_unused_columns": Left(_OWN_COLUMNS),
    "label_names": Left(_OWN_COLUMNS),
    "length_column_name": Left("lengths are those of the tokens"),
    "average_tokens_across_devices": Left("a loss is a mean over the pairs of all processes"),
    "eval_do_concat_batches": Left("prefkit has metrics of its own"),
    "include_inputs_for_metrics": Left("prefkit has metrics of its own"),
    "include_for_metrics": Left("prefkit has metrics of its own"),
    "include_tokens_per_second": Left("prefkit logs tokens_per_second"),
    "prediction_loss_only": Left("prefkit forms no logits that could be kept"),
    # -- files --------------------------------------------------------------------------------
    "logging_dir": Left("loggers have a place of their own (TENSORBOARD_LOGGING_DIR sets it)"),
    "logging_nan_inf_filter": Left("a NaN in the log is always shown"),
    "overwrite_output_dir": Left("checkpoints of another run are never written over"),
    "save_safetensors": Left("weights are always safetensors"),
    "push_to_hub_model_id": To("hub_model_id"),
    "push_to_hub_organization": Left("hub_model_id names it"),
    "push_to_hub_token": To("hub_token"),
    # -- of Seq2SeqTrainingArguments ----------------------------------------------------------
    "predict_with_generate": Left(_GENERATES),
    "generation_max_length": Left(_GENERATES),
    "generation_num_beams": Left(_GENERATES),
    "generation_config": Left(_GENERATES),
    "sortish_sampler": Refused("prefkit draws rows at random"),
}
