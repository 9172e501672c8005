"""Checks pairs of the tiny arithmetic world with nothing of the builder's: text and plain sums.

    python tests/pairs/pair_checker.py step-dpo pairs.jsonl

prints how many rows are what they should be; exits with 1 where one is not.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_LINE = re.compile(r"(\d+)([+-])(\d)=(\d+)\n")


def right_lines(prompt: str) -> list[str]:
    """The only right solution of a prompt such as "47+8-9=\\n", line by line."""
    start, rest = re.fullmatch(r"(\d+)((?:[+-]\d)+)=\n", prompt).groups()  # type: ignore[union-attr]
    total, lines = int(start), []
    for sign, term in re.findall(r"([+-])(\d)", rest):
        after = total + int(sign + term)
        lines.append(f"{total}{sign}{term}={after}\n")
        total = after
    return lines


def final(text: str) -> str:
    """What the last line gives."""
    return text.rstrip("\n").rpartition("=")[2]


def faults_of_step_row(row: dict[str, Any]) -> list[str]:
    """What is wrong with a Step-DPO row; nothing, if all is well."""
    right = right_lines(row["prompt"])
    place = row["prefix"].count("\n")
    faults = []
    if row["prefix"] != "".join(right[:place]) or row["prefix"] != "".join(row["prefix_steps"]):
        faults.append("the prefix is not right")
    if row["chosen"] != right[place]:
        faults.append("the chosen step is not right")
    if row["rejected"] == right[place] or not row["rejected"].strip():
        faults.append("the rejected step is not wrong")
    if row["prefix"] + row["full_chosen"] != "".join(right):
        faults.append("the chosen continuation is not right")
    if final(row["full_rejected"]) == final(right[-1]):
        faults.append("the rejected continuation ends in the right answer")
    if not row["full_chosen"].startswith(row["chosen"]):
        faults.append("chosen does not begin full_chosen")
    if not row["full_rejected"].startswith(row["rejected"]):
        faults.append("rejected does not begin full_rejected")
    return faults


def faults_of_controlled_row(row: dict[str, Any]) -> list[str]:
    """What is wrong with a step-controlled SCDPO row."""
    right = right_lines(row["prompt"])
    faults = []
    if row["prefix"] != "".join(row["prefix_steps"]) or not row["prefix_steps"]:
        faults.append("no shared front")
    if row["prefix"] + row["chosen"] != "".join(right):
        faults.append("front and chosen are not the right solution")
    if final(row["chosen"]) != final(right[-1]):
        faults.append("chosen ends in a wrong answer")
    if final(row["rejected"]) == final(right[-1]):
        faults.append("rejected ends in the right answer")
    if row["append_eos"] is not True:
        faults.append("the end is left open")
    return faults


def faults_of_whole_row(row: dict[str, Any]) -> list[str]:
    """What is wrong with a pair of whole solutions: only the answers are promised."""
    answer = final(right_lines(row["prompt"])[-1])
    faults = []
    if final(row["chosen"]) != answer:
        faults.append("chosen ends in a wrong answer")
    if final(row["rejected"]) == answer:
        faults.append("rejected ends in the right answer")
    return faults


def faults(method: str, row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of a build; also that its steps, joined, are its texts."""
    if method == "step-dpo":
        found, names = faults_of_step_row(row), ("full_chosen", "full_rejected")
    else:
        controlled = row.get("kind") == "step-controlled"
        found = faults_of_controlled_row(row) if controlled else faults_of_whole_row(row)
        names = ("chosen", "rejected")
    for side, name in zip(("chosen", "rejected"), names, strict=True):
        if "".join(row[f"{side}_steps"]) != row[name]:
            found.append(f"the steps of {name} are not its text")
    return found


def main() -> int:
    method, path = sys.argv[1:3]
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    tally = Counter(fault for row in rows for fault in faults(method, row))
    good = sum(not faults(method, row) for row in rows)
    print(f"{path}: {good} of {len(rows)} rows are right", *tally.items(), sep="\n  ")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
