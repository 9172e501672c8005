"""axolotl's data: datasets with a type each, their chat template, and when to evaluate."""

from collections.abc import Mapping
from typing import Any

from prefkit.convert.draft import Draft
from prefkit.convert.rules import Left, Refused, Rule
from prefkit.convert.trainers.axolotl_groups import share_of_run

# The two layouts that strategies of axolotl write by themselves, as chat templates.
_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
TEMPLATES = {"chatml": _CHATML, "llama3": _LLAMA3}
_GENERIC = ("alpaca", "metharme")  # of no model's tokenizer
_OWN = "tokenizer_default"
_LOOK = "chats are written by the tokenizer's own chat template: look at prefkit inspect"
_STRATEGIES = ("default", "argilla", "argilla_chat", "icr", "intel", "prompt_pairs", "ultra")
# What `datasets` takes for a key that is not there; columns by the names of chat_template.default.
_DEFAULTS: Mapping[str, Any] = {"path": None, "type": None, "split": None, "data_files": None}
_FIELDS = {"field_messages": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
_KNOWN = {"prompt": ("messages", "conversation", "conversations")}
_SHARES = Refused("prefkit takes whole sources", "Make a file of the rows that you want.")
_READ: dict[str, Rule] = {
    "ds_type": Left("the file's ending says it"),
    "revision": Refused("prefkit loads a dataset's newest rows", "Download them, and name a file."),
    "trust_remote_code": Refused("prefkit runs no code that a dataset brings"),
    **dict.fromkeys(("shards", "shards_idx", "preprocess_shards"), _SHARES),
    "conversation": Left("axolotl reads it no longer"),
    **dict.fromkeys(
        ("train_on_eos", "train_on_eot", "roles_to_train", "message_field_training"),
        Left("axolotl reads it in supervised runs alone"),
    ),
}
_NO_KEY = Refused("it is no key of axolotl's pairs that prefkit reads", "Remove it.")
# role → the words for it that the readers of rows know.
_ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt"),
    "system": ("system",),
    "tool": ("tool", "observation"),
}


def write_data(draft: Draft) -> None:
    """datasets, test_datasets, the template of all, and evaluation."""
    chats = _write_rows(draft, "datasets", "train_data", "train_split")
    evaluated = _evaluation(draft)
    if evaluated or draft["test_datasets"] is None:
        _write_rows(draft, "test_datasets", "eval_data", "eval_split")
    else:
        draft.leave("test_datasets", "nothing is evaluated")
    _template(draft, chats)


def _write_rows(draft: Draft, key: str, data: str, split: str) -> bool:
    """Whether some of the rows are written by chat_template."""
    chats = False
    for inner in draft.inner(key, _DEFAULTS):
        files, name = inner["data_files"], inner.get("name")
        files = [files] if isinstance(files, str) else list(files or [])
        inner.extend("path", data, files or [f"{inner['path']}:{name}" if name else inner["path"]])
        inner.leave("data_files", "path shows what they became")
        if inner.is_open("name"):
            inner.leave("name", "it stands behind the path")
        inner.write("split", {split: inner["split"] or "train"})
        chats |= _type(inner)
        for rest in inner.open_keys():
            _field(inner, rest)
    return chats


def _type(inner: Draft) -> bool:
    """What the type makes of a row; whether chat_template writes it."""
    kind = inner["type"]
    if isinstance(kind, Mapping):
        _user_defined(inner)
        return False
    family, _, strategy = str(kind or "passthrough.default").partition(".")
    if family == "passthrough":
        inner.write("type", {"string_prompts": "raw"}, "rows are texts already")
    elif family == "chat_template" and strategy in ("", *_STRATEGIES):
        inner.write("type", {"string_prompts": "chat"})
        return True
    elif family in TEMPLATES and strategy in _STRATEGIES:
        options = {"string_prompts": "chat", "chat_template": TEMPLATES[family]}
        inner.write("type", options)
    else:
        remedy = "Write the rows as prompt, chosen and rejected, and leave the type out."
        inner.refuse("type", f"prefkit does not read rows of type {kind}", remedy)
    return False


def _user_defined(inner: Draft) -> None:
    """A mapping of columns and formats, of which prefkit has that of the prompt."""
    for one in inner.inner("type", {}):
        for key in one.open_keys():
            value, ours = one[key], key.removeprefix("field_")
            if key == "prompt_format" and value and "{system}" not in value:
                one.write(key, {"prompt_template": value})
            elif key in ("chosen_format", "rejected_format") and value in (None, f"{{{key[:-7]}}}"):
                one.leave(key, "it adds nothing")
            elif key in ("field_prompt", "field_chosen", "field_rejected") and value:
                _column(one, key, ours, value)
            elif not value:
                one.leave(key, "it is empty")
            else:
                one.refuse(key, "prefkit has no such format", "Write it into the rows.")


def _column(inner: Draft, key: str, ours: str, column: str) -> None:
    before = (inner.options.get("columns") or {}).get(ours, column)
    if column == ours or column in _KNOWN.get(ours, ()):
        inner.leave(key, f"the column {column} is known")
    elif before != column:
        why = f"another dataset has {before} in its place, and prefkit has one name for all"
        inner.refuse(key, why, "Make files of one layout, or train on one of them.")
    else:
        inner.extend(key, "columns", {ours: column})


def _field(inner: Draft, key: str) -> None:
    """A key of a dataset that names columns, or roles."""
    value = inner[key]
    if key in _FIELDS and isinstance(value, str):
        _column(inner, key, _FIELDS[key], value)
    elif key in ("message_property_mappings", "message_field_role", "message_field_content"):
        if _usual_names(key, value):
            inner.leave(key, "messages with these names are known")
        else:
            remedy = "Write messages as {role, content} or {from, value}."
            inner.refuse(key, "prefkit reads no messages with these names", remedy)
    elif key == "roles" and isinstance(value, Mapping):
        if all(set(words) <= set(_ROLES.get(role, ())) for role, words in value.items()):
            inner.leave(key, "these roles are known")
        else:
            inner.refuse(key, "prefkit knows the usual roles alone", f"Use {', '.join(_ROLES)}.")
    elif value is None:
        inner.leave(key, "it is empty")
    else:
        _READ.get(key, _NO_KEY).apply(inner, key)


def _usual_names(key: str, value: Any) -> bool:
    usual = {"role": ("role", "from"), "content": ("content", "value")}
    if not isinstance(value, Mapping):
        return value in usual.get(key.removeprefix("message_field_"), ())
    return all(value[name] in usual.get(name, ()) for name in value)


def _template(draft: Draft, chats: bool) -> None:
    name, jinja = draft["chat_template"] or _OWN, draft["chat_template_jinja"]
    if not chats:
        for key in ("chat_template", "chat_template_jinja"):
            draft.leave(key, "the datasets' types do not read it")
        return
    if jinja or name == "jinja":
        draft.write("chat_template_jinja", {"chat_template": jinja})
        draft.leave("chat_template", "chat_template_jinja is it")
        return
    draft.leave("chat_template_jinja", "it is empty")
    if name in TEMPLATES:
        draft.write("chat_template", {"chat_template": TEMPLATES[name]})
    elif name in _GENERIC:
        remedy = "Write it as Jinja, and name the file as chat_template; or use the tokenizer's."
        draft.refuse("chat_template", f"the template {name} is axolotl's own text", remedy)
    else:
        draft.leave("chat_template", _LOOK)


def _evaluation(draft: Draft) -> bool:
    """Writes when to evaluate; whether it is ever done. axolotl begins with an evaluation."""
    rows, share = draft["test_datasets"], share_of_run(draft, "evals_per_epoch")
    when = {
        "eval_steps": {"eval_strategy": "steps", "eval_steps": draft["eval_steps"]},
        "evals_per_epoch": {"eval_strategy": "steps", "eval_steps": share},
        "eval_strategy": {"eval_strategy": draft["eval_strategy"]},
        "evaluation_strategy": {"eval_strategy": draft["evaluation_strategy"]},
    }
    asked = [key for key, options in when.items() if all(options.values())]
    chosen = asked[0] if asked and rows else None
    for key, options in when.items():
        if key == chosen:
            draft.write(key, {**options, "eval_on_start": True})
        elif not rows:
            draft.leave(key, "there are no test_datasets")
        else:
            draft.leave(key, f"{chosen} rules" if chosen else "nothing is evaluated")
    return chosen is not None
