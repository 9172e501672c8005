"""The questions of GSM8K that take the fewest calculations, for a model that solves few others.

    python pick_questions.py gsm8k/train.jsonl 40 > easy.jsonl

Counted are the calculator marks (`<<48/2=24>>`) of the worked solutions; of equals the shorter
question comes first.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: (row["answer"].count("<<"), len(row["question"])))
    for row in [row for row in rows if "<<" in row["answer"]][:count]:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
