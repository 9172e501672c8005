"""LLaMA-Factory's data: names that dataset_info.json says the files, columns and tags of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.convert.draft import Draft
from prefkit.convert.trainers.transformers_names import evaluates

_INFO = "dataset_info.json"
# Templates whose text is LLaMA-Factory's own, and no model's chat template.
_OWN_TEMPLATES = ("alpaca", "default", "empty", "fewshot", "vicuna")
_LOOK = "chats are written by the tokenizer's own chat template: look at prefkit inspect"
# Names that the readers of prefkit/data/formats know by themselves.
_KNOWN = {"messages": ("messages", "conversations", "conversation")}
_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}
_MEDIA = ("images", "videos", "audios")


class _Unreadable(Exception):
    """A dataset that prefkit does not read; its arguments are the reason and the remedy."""


@dataclass(frozen=True)
class _Source:
    """One dataset, as prefkit's options say it."""

    files: list[str]
    split: str
    columns: dict[str, str]
    is_chat: bool


def write_datasets(draft: Draft) -> None:
    """dataset and eval_dataset with what dataset_info.json says of them, and the template."""
    train = _write_rows(draft, "dataset", "train_data", "train_split")
    held_out: list[_Source] = []
    if draft["eval_dataset"] is not None and not evaluates(draft):
        draft.leave("eval_dataset", "nothing is evaluated (eval_strategy is no)")
    else:
        held_out = _write_rows(draft, "eval_dataset", "eval_data", "eval_split")
    draft.leave("dataset_dir", "the files in it are named")
    most = draft["max_samples"]
    splits = {"train_split": train, "eval_split": held_out}
    first = {name: f"{rows[0].split}[:{most}]" for name, rows in splits.items() if rows}
    if most and first:
        draft.write("max_samples", first)
    else:
        draft.leave("max_samples", "there is no dataset" if most else "it is off")
    _template(draft, train + held_out)


def _write_rows(draft: Draft, key: str, data: str, split: str) -> list[_Source]:
    """Writes the sources that a key names; returns them, [] where they were refused.

    How many rows are read of each is a part of the split, which max_samples writes.
    """
    value = draft[key]
    if not value:
        draft.leave(key, "it is empty")
        return []
    listed = value.split(",") if isinstance(value, str) else value
    try:
        info = _info(draft["dataset_dir"])
        sources = [_source(str(name).strip(), info, draft["dataset_dir"]) for name in listed]
        first = sources[0]
        if any((one.split, one.columns) != (first.split, first.columns) for one in sources):
            remedy = "Make files of one layout, or train on one of them."
            raise _Unreadable("the datasets have other columns or splits than each other", remedy)
    except _Unreadable as unreadable:
        draft.refuse(key, *unreadable.args)
        return []
    files = [file for one in sources for file in one.files]
    options: dict[str, Any] = {data: files[0] if len(files) == 1 else files}
    if not draft["max_samples"]:
        options[split] = first.split
    if first.columns:
        options["columns"] = first.columns
    draft.write(key, options)
    return sources


def _template(draft: Draft, sources: list[_Source]) -> None:
    """Prompts are always turns of a chat; the template is the tokenizer's."""
    name, system = draft["template"], draft["default_system"]
    if name in _OWN_TEMPLATES:
        remedy = "Write it as Jinja, and name the file as chat_template; or use the tokenizer's."
        draft.refuse("template", f"the template {name} is LLaMA-Factory's own text", remedy)
    else:
        draft.write("template", {"string_prompts": "chat"}, _LOOK)
    if not system:
        draft.leave("default_system", "it is empty")
    elif any(one.is_chat for one in sources):
        remedy = "Begin the rows' conversations with it, or give them a column `system`."
        draft.refuse("default_system", "prefkit puts it before plain prompts alone", remedy)
    else:
        draft.write("default_system", {"system_prompt": system})


def _info(folder: Any) -> Mapping[str, Any] | None:
    """What is said of all datasets; None where their names are the Hub's.

    Raises:
        _Unreadable: no such file, or not of this form.
    """
    if isinstance(folder, Mapping):
        return folder
    if folder == "ONLINE":
        return None
    file = Path(str(folder)) / _INFO
    remedy = "Run this where LLaMA-Factory is run, or correct dataset_dir."
    if str(folder).startswith("REMOTE:"):
        raise _Unreadable("dataset_info.json lies on the Hub", "Download it, and name its folder.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Unreadable(f"{file} cannot be read ({error})", remedy) from error
    if not isinstance(found, Mapping):
        raise _Unreadable(f"{file} is no mapping", remedy)
    return found


def _source(name: str, info: Mapping[str, Any] | None, folder: Any) -> _Source:
    """One dataset.

    Raises:
        _Unreadable: it is not described, holds no pairs, or is of a kind that is not read.
    """
    entry = {"hf_hub_url": name} if info is None else info.get(name)
    if not isinstance(entry, Mapping):
        raise _Unreadable(f"{_INFO} does not describe {name}", "Correct the name.")
    if not entry.get("ranking"):
        remedy = "LLaMA-Factory would stop here as well: add it where the rows are pairs."
        raise _Unreadable(f"{name} has no ranking: true in {_INFO}", remedy)
    for key in ("folder", "num_samples"):
        if entry.get(key):
            remedy = "Make a file of the rows that you want, and name it in dataset_info.json."
            raise _Unreadable(f"{name} has {key}, which prefkit does not do", remedy)
    columns, is_chat = _columns(name, entry)
    split = str(entry.get("split") or "train")
    return _Source(_files(name, entry, folder), split, columns, is_chat)


def _files(name: str, entry: Mapping[str, Any], folder: Any) -> list[str]:
    if (hub := entry.get("hf_hub_url")) is not None:
        return [f"{hub}:{entry['subset']}" if entry.get("subset") else str(hub)]
    if (file := entry.get("file_name")) is None:
        remedy = "Download it, and name it as file_name."
        raise _Unreadable(f"{name} is neither a file nor on Hugging Face's Hub", remedy)
    path = Path("." if isinstance(folder, Mapping) else str(folder)) / str(file)
    return sorted(map(str, path.iterdir())) if path.is_dir() else [str(path)]


def _columns(name: str, entry: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """prefkit's field → a column of another name; and whether the rows are chats."""
    named, style = entry.get("columns"), entry.get("formatting", "alpaca")
    named = dict(named) if isinstance(named, Mapping) else {}
    for kind in _MEDIA:
        if named.get(kind):
            raise _Unreadable(f"{name} has {kind}", "prefkit trains text models.")
    ours = {
        field: named[field] for field in ("chosen", "rejected", "system", "tools") if field in named
    }
    if style == "alpaca":
        named = named or {"prompt": "instruction", "query": "input"}
        asked = [named[key] for key in ("prompt", "query") if named.get(key)]
        if not asked:
            raise _Unreadable(f"{name} names no column of prompts", "Name it in dataset_info.json.")
        history = {"history": named["history"]} if named.get("history") else {}
        joined = len(asked) > 1 or bool(history)  # in the layout of prefkit's reader for alpaca
        ours |= dict(zip(("instruction" if joined else "prompt", "input"), asked, strict=False))
        ours |= history
    elif style in ("sharegpt", "openai"):
        _check_tags(name, entry)
        messages = named.get("messages", "conversations")
        ours |= {} if messages in _KNOWN["messages"] else {"prompt": messages}
    else:
        raise _Unreadable(f"{name} has the formatting {style!r}", "Use alpaca or sharegpt.")
    return {ours_: theirs for ours_, theirs in ours.items() if ours_ != theirs}, style != "alpaca"


def _check_tags(name: str, entry: Mapping[str, Any]) -> None:
    """Roles and contents are under the names of ShareGPT or of OpenAI."""
    tags = entry.get("tags")
    if not tags:
        return
    for known in (_SHAREGPT, _OPENAI):
        if all(known.get(tag) == word for tag, word in tags.items()):
            return
    remedy = "Write messages as {role, content} or {from, value}, with their usual roles."
    raise _Unreadable(f"{name} has tags of its own: {json.dumps(tags)}", remedy)
