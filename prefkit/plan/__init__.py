"""What a run will take, computed before it starts: memory, work, and the command that runs it.

    from prefkit.plan import Planner, make_plan, load_config, given_lengths, read_setting

`inputs` is what a plan starts from (options, launcher, lengths of the data, shape of the model),
`costs` what that takes (memory, work, torch's own memory tracker). Here they are put together:
`planner` any setting of a model and its data, `planning` the plan, `advice` and `command` what to
do, `refusals` what no run would do, `table` how it is shown.
"""

from prefkit.plan.inputs.lengths import data_lengths, given_lengths
from prefkit.plan.inputs.setting import read_setting
from prefkit.plan.inputs.shape import load_config
from prefkit.plan.planner import Planner
from prefkit.plan.planning import Plan, make_plan

__all__ = [
    "Plan",
    "Planner",
    "data_lengths",
    "given_lengths",
    "load_config",
    "make_plan",
    "read_setting",
]
