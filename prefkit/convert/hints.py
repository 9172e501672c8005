"""Names of other trainers → what to do where one of them stands for an option of prefkit.

The tables of the translation say it, so that a name is written down once; but for names that they
translate together with others, and those of arguments in Python.
"""

from prefkit.convert.trainers import TRAINERS
from prefkit.convert.trainers.transformers_names import TRANSFORMERS

_BY_ITSELF = {
    "train_dataset": "Use train_data.",
    "eval_dataset": "Use eval_data.",
    "reference_model": "Use ref_model.",
    "ref_model_name_or_path": "Use ref_model.",
    "tokenizer_name_or_path": "Use tokenizer.",
    "adapter_name_or_path": "Use model: the adapter's folder. It goes on training, and is its own "
    "reference as it begins.",
    "ref_adapter_name": "Leave it out: an adapter to start from is its own reference.",
    "template": "Use string_prompts: chat, and chat_template if the tokenizer's own is not meant.",
    "cpo_alpha": "Use nll_weight.",
    "lr": "Use learning_rate.",
    "epochs": "Use num_train_epochs.",
    "data": "Use train_data.",
    "dataset": "Use train_data.",
    "pref_beta": "Use beta.",
    "pref_loss": "Use loss_type, or another method (simpo, orpo, kto).",
    "pref_ftx": "Use nll_weight.",
    "dpo_label_smoothing": "Use label_smoothing.",
    "simpo_gamma": "Use method: simpo, and margin.",
    "gamma_beta_ratio": "Use method: simpo, and margin, which is beta times this ratio.",
}
HINTS: dict[str, str] = {name: rule.hint for name, rule in TRANSFORMERS.items()}
for _trainer in TRAINERS:
    for _name, _rule in _trainer.rules.items():
        _hint = _BY_ITSELF.get(_name, _rule.hint)
        HINTS.setdefault(_name, f"It is {_trainer.title}'s name. {_hint}")
HINTS = {**_BY_ITSELF, **HINTS}
