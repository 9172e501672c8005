"""Questions as trees: every token once, and of each what the pairs score."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from prefkit.cli.inspect import run
from prefkit.data import PairCollator, TokenizeOptions, prepare_pairs
from prefkit.data.show import show_pairs
from prefkit.data.show.trees import shortened
from prefkit.errors import ConfigError
from tests.data.data_cases import STANDARD_ROW, character_tokenizer
from tests.train.trainer_cases import byte_tokenizer

PLAIN = TokenizeOptions(chat_template="plain")
HALF = [0.5] * 7
ROWS = [
    {"prompt": "2+2=", "chosen": " four.", "rejected": " five."},
    {"prompt": "2+2=", "chosen": " four.", "rejected": " 5", "rejected_weights": [0.3, 0.3, 0.3]},
    {
        "prompt": "2+2=",
        "chosen": " four.\nSure.",
        "rejected": " four.",
        "rejected_weights": [0.5] * 7,
    },
]
TREE = """\
pairs 0-2 · rows in memory, rows 0-2 ───────────────────────────────────────────
2+2= · 4 tokens · context
⟦ ⟧ · 1 token
pairs 0-2 chosen · pair 0 rejected · pair 1 rejected ×0.3 · pair 2 rejected ×0.5
├── ⟦f⟧ · 1 token · pairs 0-2 chosen · pair 0 rejected · pair 2 rejected ×0.5
│   ├── ⟦our.⟧ · 4 tokens · pairs 0-2 chosen · pair 2 rejected ×0.5
│   │   ├── ⟦⏎Sure.<eos>⟧ · 7 tokens · pair 2 chosen
│   │   └── ⟦<eos>⟧ · 1 token · pairs 0-1 chosen · pair 2 rejected ×0.5
│   └── ⟦ive.<eos>⟧ · 5 tokens · pair 0 rejected
└── ⟦5<eos>⟧ · 2 tokens · pair 1 rejected ×0.3
3 pairs: 68 tokens as separate sequences, 47 as shared pairs, 25 as one tree:
2.72 and 1.88 times fewer
"""


def shown(rows: Any, tokenizer: Any = None, **options: Any) -> str:
    stream = io.StringIO()
    show_pairs(rows, tokenizer or character_tokenizer(), PLAIN, stream=stream, **options)
    return stream.getvalue()


def lines(rows: Any, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown(rows, as_json=True, **options).splitlines()]


def test_a_question_is_drawn_as_a_tree() -> None:
    drawn = shown(ROWS).split("pair by pair.\n")[1].split("┌")[0]
    assert [line.rstrip() for line in drawn.splitlines()] == TREE.splitlines()


def test_pairs_are_shown_one_by_one_where_asked_or_alone() -> None:
    apart = [{**row, "prompt": f"{k}: 2+2="} for k, row in enumerate(ROWS)]
    for text in (shown(ROWS, view="pairs"), shown(apart)):
        assert [f"pair {k} · rows in memory, row {k}" in text for k in range(3)] == [True] * 3
        assert "tree" not in text
        assert "chosen (6 scored tokens) ⟦ four.⟧" in text or "⟦ four.<eos>⟧" in text
    mixed = shown([ROWS[0], apart[1], ROWS[1]])
    assert "pairs 0, 2 · rows in memory, rows 0, 2" in mixed
    assert "pair 1 · rows in memory, row 1" in mixed
    assert "1 pair: " in shown([STANDARD_ROW], view="tree")


def test_what_is_left_out_is_said() -> None:
    text = " ".join(shown(ROWS, limit=2).split())
    assert "2 of the question's 3 pairs are shown. --pair 0 shows all of them." in text
    assert "2 of the question's 3 pairs" in shown(ROWS, pair=1, limit=2)
    assert "are shown" not in shown(ROWS)


def test_a_pair_by_its_place() -> None:
    rows = [{**row, "prompt": f"{k % 2}="} for k, row in enumerate([*ROWS, *ROWS])]
    assert "pairs 1, 3, 5 · rows in memory, rows 1, 3, 5" in shown(rows, pair=3)
    assert [one["pair"] for one in lines(rows, pair=3, view="pairs")] == [3]
    text = shown(rows, pair=3, view="pairs")
    assert "pair 3 · rows in memory, row 3" in text
    assert text.count("rows in memory, row ") == 1
    for wrong in (6, -1):
        with pytest.raises(ConfigError, match=rf"pair is {wrong}, and there are 6 pairs. Give 0 t"):
            shown(rows, pair=wrong)


RESPONSES = st.text("ab", min_size=1, max_size=6)

# -- as data -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(RESPONSES, RESPONSES, st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ).filter(lambda rows: all(chosen != rejected for chosen, rejected, _ in rows))
)
def test_a_tree_says_what_its_pairs_say(drawn: list[tuple[str, str, int]]) -> None:
    """Each side's ids, scored tokens and weights, put together again from the nodes of its path."""
    rows = [
        {"prompt": "Q", "chosen": c, "rejected": r, "chosen_weights": [w / 8] * (len(c) + 1)}
        for c, r, w in drawn
    ]
    pairs = lines(rows)
    (question,) = lines(rows, view="tree")
    nodes = question["nodes"]
    batch = PairCollator(0, layout="tree")(prepare_pairs(rows, character_tokenizer(), PLAIN).pairs)
    found = sum(len(piece["tokens"]) for node in nodes for piece in node["pieces"])
    assert question["tokens"]["tree"] == found == batch["num_tokens"]
    assert question["tokens"]["separate"] == batch["text_tokens"]
    assert [one["eos"] for one in question["pairs"]] == [pair["eos"] for pair in pairs]
    for k, pair in enumerate(pairs):
        sides = {"chosen": [], "rejected": []}
        for place, node in enumerate(nodes):
            for end in node["ends"]:
                if end["pair"] == k:
                    sides[end["side"]] = _path(nodes, place, k, end["side"])
        expected = [
            (t["id"], t["segment"] % 2 if t["segment"] >= 0 else -1, t["weight"])
            for t in pair["tokens"]
        ]
        assert sides["chosen"] + sides["rejected"] == expected


def _path(nodes: list[Any], place: int, pair: int, side: str) -> list[tuple[int, int, float]]:
    path: list[tuple[int, int, float]] = []
    while place >= 0:
        own = []
        for piece in nodes[place]["pieces"]:
            uses = [u["weights"] for u in piece["scored"] if (u["pair"], u["side"]) == (pair, side)]
            weights = uses[0] if uses else [0.0] * len(piece["tokens"])
            kind = -1 if not uses else int(side == "rejected")
            own += [(t["id"], kind, w) for t, w in zip(piece["tokens"], weights, strict=True)]
        path = own + path
        place = nodes[place]["parent"]
    return path


def test_json_of_pairs_is_as_before_unless_trees_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    character_tokenizer().save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "model"), "--json"]
    assert run(words) == 0
    assert [json.loads(line)["pair"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 2]
    assert run([*words, "--view", "tree"]) == 0
    (question,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [one["row"] for one in question["pairs"]] == [0, 1, 2]
    assert question["nodes"][0]["parent"] == -1


# -- on a terminal -------------------------------------------------------------------------------


def test_a_deep_tree_stays_within_80_columns() -> None:
    """24 steps with a wrong one beside each: it goes on at the left, and every step is there."""
    steps = [f"step{k:02d} " + "so " * 30 for k in range(24)]
    rows = [
        {
            "prompt": "Q",
            "prefix": "".join(steps[:k]),
            "chosen": step,
            "rejected": f"wrong{k:02d} " + "no " * 30,
        }
        for k, step in enumerate(steps)
    ]
    text = shown(rows, limit=24)
    drawn = text.split("rows 0-23")[1].split("24 pairs: ")[0]
    assert max(map(cell_len, drawn.splitlines()[1:])) <= 80
    assert drawn.count("goes on below") == drawn.count("behind node ") > 1
    for k in range(24):
        assert len(re.findall(rf"step{k:02d}", drawn)) <= 1
        assert drawn.count(f"pair {k} rejected") == 1
        assert drawn.count(f"pair {k} chosen") == 1


@pytest.mark.parametrize("colour", [True, False])
def test_colours_say_which_side_scores(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLORTERM", "truecolor")
    text = shown(ROWS[:2])
    if not colour:
        assert "⟦our.<eos>⟧" in text
        assert "\x1b" not in text
        return
    assert "⟦" not in text
    assert re.search(r"38;2;0;200;0m[^\x1b]*our", text)
    assert re.search(r"38;2;235;60;60m[^\x1b]*ive", text)
    assert re.search(r"38;2;205;165;0m[^\x1b]* ", text)


def test_control_characters_do_not_reach_the_terminal() -> None:
    rows = [{"prompt": "a\x1b[31m\tb\n", "chosen": f" {k}", "rejected": " x"} for k in range(2)]
    text = shown(rows, byte_tokenizer())
    assert "\x1b" not in text
    assert "a␛[31m⇥b⏎" in text


def test_branches_that_part_within_a_character_show_the_tokens() -> None:
    """é and è begin with the same byte: that token belongs to both."""
    rows = [
        {"prompt": "Q", "chosen": "é", "rejected": "è"},
        {"prompt": "Q", "chosen": "é", "rejected": "no"},
    ]
    text = shown(rows, byte_tokenizer())
    tokens = byte_tokenizer().convert_ids_to_tokens(byte_tokenizer()("é")["input_ids"])
    assert f"⟦{tokens[0]}⟧ · 1 token · pairs 0-1 chosen · pair 0 rejected" in text
    assert f"⟦{tokens[1]}<eos>⟧ · 2 tokens · pairs 0-1 chosen" in text


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab漢字é "), max_size=30), st.integers(1, 40))
def test_a_shortened_text_keeps_both_ends(text: str, room: int) -> None:
    short = shortened(Text(text), room).plain
    assert cell_len(short) <= max(room, 1)
    if cell_len(text) <= room:
        assert short == text
        return
    head, tail = short.split("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert cell_len(head) - cell_len(tail) in range(-2, 4)
