"""What the promise of docs/stability.md covers, as text: names, signatures, flags, files.

    python -m tests.docs.public_api > docs/public_api.txt

Signatures are read from the source, so that no version of Python or of a library shows in them.
"""

import ast
import dataclasses
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from prefkit.cli.main import COMMANDS
from prefkit.data.formats.detect import FORMATS
from prefkit.loss.objectives import METHODS
from prefkit.model.reference.cache_folder import FORMAT as CACHE_FORMAT
from prefkit.model.reference.cache_folder import MANIFEST
from prefkit.options.option import default_of
from prefkit.train.checkpointing.checkpoint import MARKER
from prefkit.train.checkpointing.store import STATE
from prefkit.train.common import CommonFields

HEAD = """\
# What docs/stability.md promises, made by `python -m tests.docs.public_api > docs/public_api.txt`.
# A line that changes or goes is a change of the promise; a line that comes is an addition.
"""
MODULES = ("prefkit_kernels", "prefkit", "prefkit.data")
OWN = ("prefkit.", "prefkit_kernels.")


def listing() -> str:
    """The whole text."""
    lines = [HEAD]
    for name in MODULES:
        module = importlib.import_module(name)
        for public in sorted(module.__all__):
            lines += described(f"{name}.{public}", getattr(module, public))
        lines.append("")
    lines += [line for command in COMMANDS for line in flags(command)]
    lines += ["", *(f"method {name}" for name in METHODS), *(f"row format {n}" for n in FORMATS)]
    lines += [f"reference cache: {MANIFEST}, format {CACHE_FORMAT}"]
    lines += [f"checkpoint: {MARKER} where it is complete, {STATE}"]
    return "\n".join(lines) + "\n"


def described(path: str, what: Any) -> Iterator[str]:
    """A function's signature; a class, its fields and methods, one a line."""
    if inspect.isclass(what):
        bases = ", ".join(base.__name__ for base in what.__bases__ if base is not object)
        yield f"class {path}" + (f"({bases})" if bases else "")
        yield from (f"{path}.{member}" for member in members(what).values())
    elif inspect.isroutine(what):
        yield f"{path}{signature(source_of(what))}"
    else:  # a type that is another name, or a version, which changes with every release
        yield path


def members(cls: type) -> dict[str, str]:
    """Public fields and methods, `__init__` and `__call__`, those inherited within prefkit too.

    What overrides another library's is promised by that library.
    """
    found: dict[str, str] = {}
    others = [vars(one) for one in cls.__mro__ if not one.__module__.startswith(OWN)]
    for one in reversed(cls.__mro__):
        if one.__module__.startswith(OWN):
            for node in source_of(one).body:
                if (line := member(node)) is not None:
                    found[line[0]] = line[1]
    own = {name for name in found if name == "__init__" or not any(name in x for x in others)}
    return {name: found[name] for name in sorted(own)}


def member(node: ast.stmt) -> tuple[str, str] | None:
    if isinstance(node, ast.FunctionDef):
        if node.name.startswith("_") and node.name not in ("__init__", "__call__"):
            return None
        decorators = [ast.unparse(one) for one in node.decorator_list]
        shown = signature(node)
        if "property" in decorators:
            shown = f": {shown.partition(' -> ')[2]}"
        return node.name, f"{node.name}{shown}"
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        name, annotation = node.target.id, ast.unparse(node.annotation)
        if name.startswith("_") or "ClassVar" in annotation:
            return None
        return name, f"{name}: {annotation.strip(chr(39))}{default(node.value)}"
    return None


def default(value: ast.expr | None) -> str:
    """Of a field: what stands behind the =, of `option(…)` and `field(…)` the default in it."""
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") in ("option", "field"):
        named = {one.arg: one.value for one in value.keywords}
        value = value.args[0] if value.args else named.get("default", named.get("default_factory"))
    return "" if value is None else f" = {ast.unparse(value)}"


def signature(node: Any) -> str:
    """Arguments and result, without the quotes of annotations that are text."""
    for one in ast.walk(node):
        for name in ("annotation", "returns"):
            text = getattr(one, name, None)
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                setattr(one, name, ast.parse(text.value, mode="eval").body)
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"({ast.unparse(node.args)}){result}"


def source_of(what: Any) -> Any:
    """The definition of a function or class."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(what)))
    return ast.parse(source).body[0]


def flags(command: str) -> Iterator[str]:
    """A command and its flags, with their defaults."""
    about = import_module(f"prefkit.cli.{command}").COMMAND
    yield f"prefkit {command}" + (f" {about.words[0]}" if about.words else "")
    for name, (field, _, cls) in sorted(about.fields.items()):
        if cls is CommonFields:  # transformers' own
            continue
        value = default_of(field)
        shown = "" if value is dataclasses.MISSING else f" = {value!r}"
        yield f"prefkit {command} --{name}{shown}"


if __name__ == "__main__":
    sys.stdout.write(listing())
