"""Names of other trainers → what to do where one of them stands for an option of prefkit.

The tables of the translation say it, so that a name is written down once.
"""

from prefkit.convert.trainers import TRAINERS
from prefkit.convert.trainers.transformers_names import TRANSFORMERS

HINTS: dict[str, str] = {name: rule.hint for name, rule in TRANSFORMERS.items()}
for _trainer in TRAINERS:
    for _name, _rule in _trainer.rules.items():
        HINTS.setdefault(_name, f"It is {_trainer.title}'s name. {_rule.hint}")
