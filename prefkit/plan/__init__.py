"""What a run will take, told before it starts: memory, work, and the command that runs it.

    from prefkit.plan import make_plan, load_config, given_lengths, read_setting

Modules: `setting` what of the options matters, `model` what the model is made of, `lengths` of the
data, `trace` what the body keeps, `head` what the fused head holds, `memory` and `flops` the sums,
`advice` and `command` what to do, `table` how it looks, `exact` torch's own memory tracker.
"""

from prefkit.plan.lengths import data_lengths, given_lengths
from prefkit.plan.model import load_config
from prefkit.plan.planning import Plan, make_plan
from prefkit.plan.setting import read_setting

__all__ = ["Plan", "data_lengths", "given_lengths", "load_config", "make_plan", "read_setting"]
