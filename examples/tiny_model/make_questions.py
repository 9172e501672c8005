"""Writes the questions that `prefkit build` turns into pairs for the tiny model.

    python examples/tiny_model/make_questions.py

`questions/` holds training problems only, `held_out.jsonl` problems that no training ever sees.
"""

import json
from pathlib import Path

from prefkit.demo import arithmetic as world
from prefkit.files.atomic import write_text

HERE = Path(__file__).parent
FILES = (("questions/a.jsonl", "train", 0, 250), ("questions/b.jsonl", "train", 250, 500))


def lines(problems: list[world.Problem]) -> str:
    rows = ({"question": p.prompt, "answer": str(p.answer)} for p in problems)
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    (HERE / "questions").mkdir(exist_ok=True)
    for name, split, start, stop in FILES:
        write_text(HERE / name, lines(world.problems(stop, split, seed=1)[start:]))
    write_text(HERE / "held_out.jsonl", lines(world.problems(500, "held_out", seed=1)))


if __name__ == "__main__":
    main()
