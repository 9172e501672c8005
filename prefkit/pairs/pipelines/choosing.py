"""Who is asked for the first wrong step, and who reads right answers again, by the options alone.

"auto" is decided for every solution by itself: the program where the steps of an expression can
be followed (`prefkit.pairs.localise.expression.orders`); else a judge, where one is given; else
rollouts for a wrong answer, and nobody for a right one, of which rollouts say nothing.
"""

from collections.abc import Mapping
from typing import Any

from prefkit.errors import ConfigError
from prefkit.pairs.fields import EVALUATE

LOCALISERS = ("auto", "program", "judge", "rollouts")
OF_A_JUDGE = ("judge_server", "judge_model", "judge_max_tokens")
FUNCTION = "function"


def gives_judge(options: Mapping[str, Any]) -> bool:
    """Whether options name a judge of its own, which "auto" then asks."""
    return bool(options.get("judge_server") or options.get("judge_model"))


def chosen(options: Mapping[str, Any], method: str) -> tuple[str, str]:
    """Who localises and who filters in a build of a method.

    Args:
        options: of the build, those left out at their defaults.

    Returns:
        The localiser: one of `LOCALISERS`, "module:function", or "none" for a method without; and
        the filter: "auto", "program", "judge", "function" or "none".
    """
    localiser = options.get("localiser", "auto") if method == "step-dpo" else "none"
    wanted = options.get("process_filter", "auto")
    if method == EVALUATE:
        return localiser, "none"
    if wanted != "auto":
        return localiser, wanted
    if method in ("dpo", "cdpo"):
        return localiser, "none"
    if localiser in ("none", "auto", "rollouts"):
        return localiser, "auto"
    return localiser, localiser if localiser in LOCALISERS else FUNCTION


def check_finders(given: Mapping[str, Any], method: str) -> None:
    """Options of somebody who is never asked are an error.

    Args:
        given: what the user has set.

    Raises:
        ConfigError: names the option, and who would have to be asked.
    """
    localiser, wanted = chosen(given, method)
    asked = {localiser, wanted}
    if "auto" in asked and gives_judge(given):
        asked.add("judge")
    for name in OF_A_JUDGE:
        if given.get(name) is not None and "judge" not in asked:
            step_dpo = "localiser: judge or " if method == "step-dpo" else ""
            raise ConfigError(
                f"{name} has no effect: nobody asks a judge here. Say {step_dpo}process_filter: "
                f"judge, or leave {name} out."
            )
    if given.get("rollouts") is None or localiser == "rollouts":
        return
    if localiser != "auto":
        raise ConfigError(
            f"rollouts has no effect with localiser {localiser}. Leave it out, or say localiser: "
            "rollouts."
        )
    if gives_judge(given):
        raise ConfigError(
            "rollouts has no effect with localiser auto where a judge is given: the judge is asked "
            "instead. Leave rollouts out, or say localiser: rollouts."
        )
