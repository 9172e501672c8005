"""Names that a config or a trainer does not have, from Python: one error that says what to use.

Python's own TypeError names the argument and nothing else, and a dataclass would take a folder
given by place for whatever field of transformers comes first.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from prefkit.convert.hints import HINTS
from prefkit.errors import ConfigError
from prefkit.options.command import unknown_name
from prefkit.options.option import former_names
from prefkit.train.fields import ScriptArguments

Class = TypeVar("Class", bound=type)
_QUANTISED = "Give the trainer quantization_config=BitsAndBytesConfig(…)."
_ADAPTER = "Give the trainer peft_config=LoraConfig(…)."
_FROM_PYTHON = (  # how names of the command begin → what to do instead; the first that fits
    (("load_in_", "bnb_4bit", "use_bnb"), _QUANTISED),
    (("adapter", "use_peft", "lora_", "use_dora", "use_rslora", "finetuning_type"), _ADAPTER),
    (("dtype", "torch_dtype"), "Use model_init_kwargs={'dtype': 'bfloat16'}, or a loaded model."),
    (("revision", "attn_implementation"), "Use model_init_kwargs={…}, or a loaded model."),
    (
        ("",),
        "It is an option of `prefkit train`. From Python the trainer is given what it says: model, "
        "ref_model, processing_class, train_dataset, eval_dataset.",
    ),
)
_OF_COMMAND = {
    name: next(say for starts, say in _FROM_PYTHON if name.startswith(starts))
    for name in (
        *(field.name for field in dataclasses.fields(ScriptArguments)),
        *("torch_dtype", "finetuning_type", "lora_rank", "lora_target"),
    )
}


def named_options(cls: Class) -> Class:
    """A config whose only argument by place is output_dir, as those of transformers and TRL.

    Raises (the class, when it is called):
        ConfigError: a name that is no option, or more by place.
    """
    init = cls.__init__  # type: ignore[misc]
    names = [field.name for field in dataclasses.fields(cls) if field.init]

    @functools.wraps(init)
    def checked(self: Any, *places: Any, **options: Any) -> None:
        if places:
            options = {**_folder(cls.__name__, places, options), **options}
        _refuse(cls.__name__, options, names, former_names(cls), {**HINTS, **_OF_COMMAND})
        init(self, **options)

    checked.__signature__ = _with_folder_first(init)  # type: ignore[attr-defined]
    cls.__init__ = checked  # type: ignore[misc]
    return cls


def named_arguments(
    config: type, elsewhere: Mapping[str, str] | None = None
) -> Callable[[Class], Class]:
    """A trainer that says what to do about an argument that it does not have.

    Args:
        config: whose options are not its arguments.
        elsewhere: arguments of other trainers → what to use instead.
    """

    def decorate(cls: Class) -> Class:
        init = cls.__init__  # type: ignore[misc]
        names = list(inspect.signature(init).parameters)[1:]
        hints = {**HINTS, **(elsewhere or {})}
        for field in dataclasses.fields(config):
            shown = f"{config.__name__}({field.name}=…)"
            hints[field.name] = f"It is an option: pass args={shown}."

        @functools.wraps(init)
        def checked(self: Any, *places: Any, **arguments: Any) -> None:
            _refuse(cls.__name__, arguments, names, {}, hints)
            init(self, *places, **arguments)

        cls.__init__ = checked  # type: ignore[misc]
        return cls

    return decorate


def _with_folder_first(init: Any) -> inspect.Signature:
    own, *others = inspect.signature(init).parameters.values()
    by_name = {one.name: one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in others}
    first = by_name.pop("output_dir").replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature([own, first, *by_name.values()])


def _folder(name: str, places: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, str]:
    folder = places[0]
    if len(places) > 1 or not isinstance(folder, str | os.PathLike):
        raise ConfigError(
            f"{name} takes one argument by its place, output_dir; got {len(places)}: "
            f"{', '.join(map(repr, places))}. Name the options: {name}(learning_rate=1e-6)."
        )
    if "output_dir" in options:
        raise ConfigError(f"{name} is given output_dir twice. Keep one of the two.")
    return {"output_dir": os.fspath(folder)}


def _refuse(
    name: str,
    given: Mapping[str, Any],
    names: Collection[str],
    former: Mapping[str, str],
    hints: Mapping[str, str],
) -> None:
    for option in given:
        if option not in names:
            remedy = unknown_name(option, names, former, hints)
            raise ConfigError(f"{name} has no argument '{option}'. {remedy}".rstrip())
