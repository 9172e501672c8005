"""`token_weights` and `pair_weights`: a function of detached quantities makes weights of a step.

    what it names of logp, ref_logp, entropy, log_sum_sq, kl, segments, weights, sides → w ≥ 0

Only what a function's signature names is computed and handed over, by keyword. All of it is of the
T entries of a call, without gradient, and so is what comes back; what is said of an entry that does
not count (of segment −1, or of weight 0) is not looked at. A function gets copies: it may work in
place.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefkit.errors import ConfigError
from prefkit.options.check import nearest_first
from prefkit.options.import_path import load_function

if TYPE_CHECKING:
    from torch import Tensor

_HOME = "prefkit.loss.weights"
# Option → name → module:function.
SHIPPED: dict[str, dict[str, str]] = {
    "token_weights": {
        name: f"{_HOME}.of_tokens:{name}"
        for name in ("confpo", "ld_dpo", "tis_dpo", "full_step_dpo", "step_rewards")
    },
    "pair_weights": {"wpo": f"{_HOME}.of_pairs:wpo"},
}
COMPUTED = ("entropy", "log_sum_sq")  # what only functions read: computed where one names it
QUANTITIES = ("logp", "ref_logp", *COMPUTED, "kl", "segments", "weights", "sides")


@dataclass(frozen=True)
class Hook:
    """A function that makes weights.

    Attributes:
        option: whose value it is.
        name: as it was given, for messages.
        function: of the quantities it names; returns weights ≥ 0.
        reads: the quantities that its signature names.
    """

    option: str
    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]

    @classmethod
    def of(
        cls, option: str, value: "str | Callable[..., Any] | None", missing: Mapping[str, str]
    ) -> "Hook | None":
        """The hook that an option names.

        Args:
            option: "token_weights" or "pair_weights".
            value: of the option, with parameters of the function where it takes others than its
                defaults: "ld_dpo(alpha=0.3)"; None = no hook.
            missing: quantities that the loss does not have → why.

        Raises:
            ConfigError: no such name or function, a parameter that is no quantity, or one that the
                loss does not have; a value for a parameter that the function does not have.
        """
        if value is None:
            return None
        if callable(value):
            name, function = getattr(value, "__name__", repr(value)), value
        elif not isinstance(value, str):
            raise ConfigError(
                f"{option} is {value!r}; it must be a name, module:function, or a function."
            )
        else:
            name, (path, given) = value, _parsed(option, value)
            function = load_function(option, _path(option, path))
            _check_parameters(option, path, function, given)
            function = partial(function, **given) if given else function
        reads = []
        for parameter in inspect.signature(function).parameters.values():
            known, needed = parameter.name in QUANTITIES, parameter.default is parameter.empty
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if needed and (not known or parameter.kind is parameter.POSITIONAL_ONLY):
                raise ConfigError(
                    f"{option} {name} asks for {parameter.name!r}, which it is not given: it may "
                    f"name {', '.join(QUANTITIES)}."
                )
            if known and parameter.name not in missing:
                reads.append(parameter.name)
            elif known and needed:
                raise ConfigError(
                    f"{option} {name} reads {parameter.name}: {missing[parameter.name]}."
                )
        return cls(option, name, function, tuple(reads))

    def __call__(self, quantities: "Mapping[str, Any]", counts: "Tensor") -> "Tensor":
        """The weights in the dtype of logp, 0 where nothing counts.

        Args:
            quantities: by name.
            counts: (T,) or (P,) bool, the tokens or pairs that have a weight.

        Raises:
            ConfigError: what came back is not that; negative or not finite (by a device-side
                assertion on a GPU).
        """
        import torch

        given = {name: quantities[name].detach().clone() for name in self.reads}
        found, shape = self.function(**given), tuple(counts.shape)
        told = f"{self.option} {self.name} returned"
        if not isinstance(found, torch.Tensor):
            raise ConfigError(f"{told} a {type(found).__name__}; it must return a tensor.")
        if found.shape != shape:
            raise ConfigError(f"{told} the shape {tuple(found.shape)}; it must be {shape}.")
        if found.requires_grad:
            raise ConfigError(f"{told} weights that require a gradient; detach what they are of.")
        wrong = counts & ~((found >= 0) & torch.isfinite(found))
        right = ~wrong.any()
        message = f"{told} weights that are negative or not finite"
        if right.is_cuda:
            torch._assert_async(right, message)
        elif not torch.compiler.is_compiling() and not bool(right):
            place = int(wrong.nonzero()[0])
            where = self._where(place, quantities["segments"])
            raise ConfigError(f"{message}, such as {float(found[place])} at {where}.")
        return torch.where(counts, found, 0).to(quantities["logp"].dtype)

    def _where(self, place: int, segments: "Tensor") -> str:
        """An entry of what came back, as messages name it."""
        if self.option == "pair_weights":
            return f"pair {place}"
        pair, side = divmod(int(segments[place]), 2)
        return f"{place}, a token of the {('chosen', 'rejected')[side]} side of pair {pair}"


def _parsed(option: str, value: str) -> tuple[str, dict[str, Any]]:
    """A name, and the literals that it is given in parentheses."""
    name, opened, rest = value.partition("(")
    if not opened:
        return value, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        single = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        words = call.keywords if single else []  # type: ignore[attr-defined]
        given = {str(word.arg): ast.literal_eval(word.value) for word in words if word.arg}
        if not given or len(given) < len(words):
            raise ValueError("not each by its name, once")
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{option} is {value!r}; parameters are given by name, as in ld_dpo(alpha=0.3)."
        ) from error
    return name, given


def _check_parameters(
    option: str, name: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> None:
    known = inspect.signature(function).parameters
    own = [one for one in known if one not in QUANTITIES]
    for parameter, value in given.items():
        if parameter not in own:
            has = f"it has {', '.join(nearest_first(parameter, own))}" if own else "it has none"
            raise ConfigError(f"{option} {name} has no parameter {parameter!r}; {has}.")
        default = known[parameter].default
        if isinstance(default, float) and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise ConfigError(f"{option} {name}: {parameter} is {value!r}; it must be a number.")


def _path(option: str, name: str) -> str:
    if ":" in name:
        return name
    if name not in SHIPPED[option]:
        known = ", ".join(nearest_first(name, SHIPPED[option]))
        raise ConfigError(
            f"{option} is {name!r}; it must be one of {known}, or package.module:function."
        )
    return SHIPPED[option][name]
