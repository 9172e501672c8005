"""Exactly the right tokens are scored, with the right weights, for tokenizers of three kinds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.data import ReadOptions, TokenizeOptions, prepare_pairs, read_pairs, tokenize_pair
from prefkit.data.pair import Pair, Side
from prefkit.data.text.render import Renderer
from prefkit.data.view import TokenView, view_pair
from prefkit.errors import RowError, TooLongError
from tests.data.data_cases import (
    CONVERSATION_ROW,
    STANDARD_ROW,
    STEP_ROW,
    TDPO_FILE,
    TOKENIZERS,
    cdpo_scored_file,
    character_tokenizer,
    named_tokenizer,
    scdpo_row,
    trimming_tokenizer,
)


@pytest.fixture(scope="session", params=["characters", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return named_tokenizer(request.param, request)


@pytest.fixture(scope="session", params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return named_tokenizer(request.param, request)


def _views(
    rows: Any, tokenizer: Any, options: TokenizeOptions | None = None, **reading: Any
) -> tuple[list[TokenView], list[TokenView]]:
    """The views of the first pair."""
    options = options or TokenizeOptions()
    pair = read_pairs(rows, **reading)[0]
    tokenized = tokenize_pair(pair, tokenizer, options)
    return view_pair(pair, tokenized, 0, Renderer(tokenizer, options))


def _scored(views: list[TokenView]) -> str:
    return "".join(view.text for view in views if view.segment >= 0)


def _unscored(views: list[TokenView]) -> str:
    return "".join(view.text for view in views if view.segment < 0)


def test_single_step_is_scored_exactly_and_never_followed_by_eos(tokenizer: Any) -> None:
    for options in (TokenizeOptions(), TokenizeOptions(string_prompts="chat")):
        chosen, rejected = _views([STEP_ROW], tokenizer, options)
        assert _scored(chosen) == STEP_ROW["chosen"]
        assert _scored(rejected) == STEP_ROW["rejected"]
        assert _unscored(chosen).endswith(
            STEP_ROW["prompt"] + STEP_ROW["initial_reason_steps"]
        ) or (
            _unscored(chosen).endswith(STEP_ROW["initial_reason_steps"])
            and STEP_ROW["prompt"] in _unscored(chosen)
        )
        assert chosen[-1].part == rejected[-1].part == "response"
        assert chosen[-1].id != tokenizer.eos_token_id


def test_whole_solution_ends_with_one_scored_eos(tokenizer: Any) -> None:
    chosen, rejected = _views([STEP_ROW], tokenizer, level="solution")
    assert _scored(chosen) == STEP_ROW["full_chosen"] + tokenizer.eos_token
    assert _scored(rejected) == STEP_ROW["full_rejected"] + tokenizer.eos_token
    assert [v.id for v in chosen].count(tokenizer.eos_token_id) == 1


def test_the_ids_are_those_of_the_whole_string(tokenizer: Any) -> None:
    pair = tokenize_pair(read_pairs([STEP_ROW])[0], tokenizer)
    text = STEP_ROW["prompt"] + STEP_ROW["initial_reason_steps"] + STEP_ROW["chosen"]
    assert pair.chosen.ids.tolist() == tokenizer(text)["input_ids"]


def test_tool_output_is_masked_and_the_front_is_not_scored(tokenizer: Any) -> None:
    chosen, rejected = _views([scdpo_row()], tokenizer)
    end = chosen[-1].text
    assert _scored(chosen) == "print(12 * 12)The answer is 144." + end
    assert _scored(rejected) == "print(12 + 12)The answer is 24." + end
    assert "Let me compute it with code.\n" in _unscored(chosen)
    assert _unscored(chosen).endswith("\n144\n")
    assert chosen[-1].id == tokenizer.eos_token_id
    chosen, _ = _views([scdpo_row()], tokenizer, mask_tool_output=False)
    assert _scored(chosen) == "print(12 * 12)\n144\nThe answer is 144." + end


def test_tagged_blocks_mask_their_tags_with_them() -> None:
    chosen, _ = _views([scdpo_row()], character_tokenizer(), block_style="tagged")
    assert _scored(chosen).startswith("<|code|>print(12 * 12)<|endofblock|><|text|>The answer")
    assert "<|execution|>144<|endofblock|>" in _unscored(chosen)


def test_conversation_scores_the_answer_and_the_end_of_turn_only(tokenizer: Any) -> None:
    chosen, rejected = _views([CONVERSATION_ROW], tokenizer)
    assert _scored(chosen) == "It is blue." + tokenizer.eos_token
    assert _scored(rejected) == "It is green." + tokenizer.eos_token
    text = tokenizer.apply_chat_template(
        CONVERSATION_ROW["prompt"], tokenize=False, add_generation_prompt=True
    )
    assert _unscored(chosen) == text


def test_tdpo_layout_gives_one_pair_an_index_pair(tokenizer: Any) -> None:
    dataset = prepare_pairs(TDPO_FILE, tokenizer)
    assert len(dataset) == 2
    assert all(p.chosen.eos and p.rejected.eos for p in dataset.pairs)
    chosen, rejected = _views(TDPO_FILE, tokenizer)
    assert _scored(chosen) == " Two cats have 8 legs." + tokenizer.eos_token
    assert _scored(rejected) == " Two cats have 6 legs." + tokenizer.eos_token


def test_cdpo_scores_fall_on_their_tokens(any_tokenizer: Any) -> None:
    tokenizer = any_tokenizer
    data = cdpo_scored_file(tokenizer)
    pair = prepare_pairs(data, tokenizer).pairs[0]
    assert (pair.chosen.weights[pair.chosen.scored] == 1).all()
    scores = data["prob_result"][0]["neg"]["ce_prob"]
    joint = tokenizer(data["prompt"][0] + data["rejected"][0])["input_ids"]
    assert pair.rejected.ids[:-1].tolist() == joint
    assert pair.rejected.eos
    for place in np.flatnonzero(pair.rejected.scored)[:-1]:
        assert pair.rejected.weights[place] == pytest.approx(1 - scores[place - 1], abs=1e-6)
    assert pair.rejected.weights[-1] == 1  # the end token was never scored: it counts in full


def test_cdpo_scores_survive_another_way_of_writing_the_prompt() -> None:
    tokenizer = character_tokenizer()
    data = cdpo_scored_file(tokenizer)
    raw = prepare_pairs(data, tokenizer).pairs[0].rejected
    chat = prepare_pairs(data, tokenizer, TokenizeOptions(string_prompts="chat")).pairs[0].rejected
    assert len(chat.ids) > len(raw.ids)
    np.testing.assert_array_equal(chat.weights[chat.scored], raw.weights[raw.scored])


def test_spans_weigh_the_words_they_cover(tokenizer: Any) -> None:
    text = " She owed him 5."
    start = text.index("owed")
    row = {
        "prompt": "Q:",
        "chosen": " She paid him.",
        "rejected": text,
        "rejected_spans": [[start, start + 4, 0.25], [start + 9, start + 10, 3]],
    }
    _, rejected = _views([row], tokenizer)
    weights = {v.text.strip(): v.weight for v in rejected if v.segment >= 0}
    if len(tokenizer) > 1000:  # words, each with the space before it
        assert weights["owed"] == 0.25
        assert weights["him"] == 1
        assert weights["5"] == 3
    else:
        owed = [v.weight for v in rejected if v.segment >= 0][start : start + 4]
        assert owed == [0.25] * 4
        assert weights["5"] == 3
        assert weights["S"] == 1


@pytest.mark.parametrize("shape", ["floats", "ids", "couples", "strings"])
@pytest.mark.parametrize("with_eos", [False, True])
def test_token_weights_in_every_shape(tokenizer: Any, shape: str, with_eos: bool) -> None:
    response = " 4 and 5."
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    ids += [tokenizer.eos_token_id] * with_eos
    weights = [0.5 + 0.25 * i for i in range(len(ids))]
    names = tokenizer.convert_ids_to_tokens(ids)
    given: Any = {
        "floats": weights,
        "ids": {"ids": ids, "weights": weights},
        "couples": [list(c) for c in zip(ids, weights, strict=True)],
        "strings": [list(c) for c in zip(names, weights, strict=True)],
    }[shape]
    row = {**STANDARD_ROW, "chosen": response, "chosen_weights": given}
    side = prepare_pairs([row], tokenizer).pairs[0].chosen
    assert side.weights[side.scored].tolist() == weights + ([] if with_eos else [1.0])


def test_weights_of_other_tokens_are_refused(tokenizer: Any) -> None:
    ids = tokenizer(" 4 and 5.", add_special_tokens=False)["input_ids"]
    ids[1] += 1
    for tokens in (ids, tokenizer.convert_ids_to_tokens(ids)):
        row = {**STANDARD_ROW, "chosen": " 4 and 5."}
        row["chosen_weights"] = {"tokens": tokens, "weights": [1.0] * len(ids)}
        with pytest.raises(RowError, match="made for other tokens: token 1 "):
            prepare_pairs([row], tokenizer)


def test_append_eos_of_the_row_wins_over_the_level(tokenizer: Any) -> None:
    own = {"prompt": "Q", "prefix": " a.", "chosen": " b.", "rejected": " c."}
    for append_eos, level, expected in [
        ("auto", "step", False),
        ("auto", "solution", True),
        (True, "step", True),
        (False, "solution", False),
    ]:
        row = {**own, "append_eos": append_eos}
        pair = prepare_pairs([row], tokenizer, reading=ReadOptions(level=level)).pairs[0]
        assert pair.chosen.eos == pair.rejected.eos == expected


def test_eos_already_in_the_text_is_not_doubled(tokenizer: Any) -> None:
    row = {**STANDARD_ROW, "chosen": " 4." + tokenizer.eos_token}
    chosen, _ = _views([row], tokenizer)
    assert [v.id for v in chosen].count(tokenizer.eos_token_id) == 1
    assert prepare_pairs([row], tokenizer).pairs[0].chosen.eos


def test_a_prompt_that_begins_the_answer_is_continued(tokenizer: Any) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}],
        "chosen": " yes.",
        "rejected": " no.",
    }
    chosen, _ = _views([row], tokenizer)
    assert _unscored(chosen).endswith("Well,")
    assert _scored(chosen).startswith(" yes.")


def test_joiner_template_and_system_prompt(tokenizer: Any) -> None:
    options = TokenizeOptions(prompt_template="Q: {prompt}", joiner="\n")
    chosen, _ = _views([STEP_ROW], tokenizer, options)
    expected = "Q: " + STEP_ROW["prompt"] + "\n" + STEP_ROW["initial_reason_steps"]
    assert _unscored(chosen) == expected
    options = TokenizeOptions(string_prompts="chat", system_prompt="Be brief.")
    chosen, _ = _views([STEP_ROW], tokenizer, options)
    assert "Be brief." in _unscored(chosen)


def test_plain_template_serves_a_tokenizer_without_one() -> None:
    tokenizer = trimming_tokenizer()
    chosen, _ = _views([CONVERSATION_ROW], tokenizer, TokenizeOptions(chat_template="plain"))
    assert _scored(chosen) == "It is blue.</s>"
    assert _unscored(chosen) == "What color is the sky?\n"


def test_bos_precedes_raw_text_once() -> None:
    tokenizer = trimming_tokenizer()
    for prompt in ("2 + 2 is", "<s>2 + 2 is"):
        side = prepare_pairs([{**STANDARD_ROW, "prompt": prompt}], tokenizer).pairs[0].chosen
        assert side.ids.tolist().count(tokenizer.bos_token_id) == 1
        assert not side.scored[0]


def test_a_straddling_token_is_scored(request: pytest.FixtureRequest) -> None:
    tokenizer = named_tokenizer("smollm2", request)
    row = {"prompt": "Answer: ", "chosen": "yes it is", "rejected": "no it is not"}
    chosen, _ = _views([row], tokenizer)
    assert _scored(chosen) == " yes it is" + tokenizer.eos_token


def test_truncation_cuts_only_the_end_of_solutions(tokenizer: Any) -> None:
    full = prepare_pairs([STEP_ROW], tokenizer, reading=ReadOptions(level="solution")).pairs[0]
    limit = len(full.chosen.ids) - 3
    options = TokenizeOptions(max_length=limit, too_long="truncate_end")
    dataset = prepare_pairs([STEP_ROW], tokenizer, options, ReadOptions(level="solution"))
    side = dataset.pairs[0].chosen
    np.testing.assert_array_equal(side.ids, full.chosen.ids[:limit])
    assert not side.eos
    assert dataset.report.truncated == 1
    step = len(tokenize_pair(read_pairs([STEP_ROW])[0], tokenizer).chosen.ids)
    options = TokenizeOptions(max_length=step - 1, too_long="truncate_end")
    with pytest.raises(TooLongError, match="a single step is never cut"):
        tokenize_pair(read_pairs([STEP_ROW])[0], tokenizer, options)
    options = TokenizeOptions(max_length=5, too_long="truncate_end")
    with pytest.raises(TooLongError, match="the prompt is never cut"):
        prepare_pairs([STEP_ROW], tokenizer, options, ReadOptions(level="solution"))


def test_max_length_counts_the_end_token(tokenizer: Any) -> None:
    length = len(prepare_pairs([STANDARD_ROW], tokenizer).pairs[0].chosen.ids)
    prepare_pairs([STANDARD_ROW], tokenizer, TokenizeOptions(max_length=length))
    with pytest.raises(TooLongError, match=f"{length} tokens .* max_length {length - 1}"):
        prepare_pairs([STANDARD_ROW], tokenizer, TokenizeOptions(max_length=length - 1))


def test_shared_is_the_common_prefix_of_the_ids(tokenizer: Any) -> None:
    row = {"prompt": "Q", "chosen": " one two three", "rejected": " one two four"}
    pair = prepare_pairs([row], tokenizer).pairs[0]
    a, b = pair.chosen.ids, pair.rejected.ids
    assert (a[: pair.shared] == b[: pair.shared]).all()
    assert a[pair.shared] != b[pair.shared]


@pytest.mark.shared
def test_real_pairs_score_their_responses_to_the_letter(
    shared_data: Path, request: pytest.FixtureRequest
) -> None:
    """Solutions that models wrote for GSM8K questions: every character, and the end token."""
    tokenizer = named_tokenizer("smollm2", request)
    rows = []
    for line in (shared_data / "gsm8k" / "model_solutions.jsonl").read_text().splitlines()[:200]:
        entry = json.loads(line)
        answers = [value for value in entry.values() if isinstance(value, dict)]
        right = [a["solution"] for a in answers if a["is_correct"]]
        wrong = [a["solution"] for a in answers if not a["is_correct"]]
        if right and wrong:
            prompt = entry["question"] + "\n"
            rows.append({"prompt": prompt, "chosen": right[0], "rejected": wrong[0]})
    dataset = prepare_pairs(rows, tokenizer, keep_text=True)
    assert len(dataset) > 80
    assert dataset.texts is not None
    renderer = Renderer(tokenizer, TokenizeOptions())
    for index, pair in enumerate(dataset.texts):
        chosen, rejected = view_pair(pair, dataset.pairs[index], index, renderer)
        assert _scored(chosen) == pair.chosen.text + tokenizer.eos_token
        assert _scored(rejected) == pair.rejected.text + tokenizer.eos_token


PIECES = st.text(alphabet="ab .\n≡−7", min_size=1, max_size=12)


@example(prompt="7", prefix="\n", chosen="   ", masks=None)  # white space alone in a token
@given(prompt=PIECES, prefix=PIECES, chosen=PIECES, masks=st.data())
@settings(max_examples=150, deadline=None)
def test_scored_tokens_are_those_that_hold_a_free_character(
    any_tokenizer: Any, prompt: str, prefix: str, chosen: str, masks: st.DataObject | None
) -> None:
    """Against the definition, character by character, on the tokenizer's own decoding."""
    tokenizer = any_tokenizer
    start = masks.draw(st.integers(0, len(chosen) - 1)) if masks else 0
    end = masks.draw(st.integers(start, len(chosen) - 1)) if masks else 0
    masked = ((start, end),) if end > start else ()
    pair = Pair(
        prompt="x" + prompt,
        prefix=prefix,
        chosen=Side(text=chosen, masked=masked),
        rejected=Side(text="no" + chosen),
        append_eos=False,
        source="test",
        row=0,
    )
    side = tokenize_pair(pair, tokenizer).chosen
    front = "x" + prompt + prefix
    free = [False] * len(front) + [not start <= i < end for i in range(len(chosen))]
    # bytes are what every one of these tokenizers keeps: count them token by token
    owner = [flag for c, flag in zip(front + chosen, free, strict=True) for _ in c.encode()]
    position = 0
    for token_id, scored in zip(side.ids.tolist(), side.scored.tolist(), strict=True):
        if token_id == tokenizer.bos_token_id:
            assert not scored
            continue
        width = _bytes_of(tokenizer, token_id)
        assert scored == any(_characters(front + chosen, position, width, free))
        position += width
    assert position == len(owner)


def _bytes_of(tokenizer: Any, token_id: int) -> int:
    """Byte-level tokenizers write each byte as one character."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    return len(token.encode()) if len(tokenizer) < 120 else len(token)


def _characters(text: str, position: int, width: int, free: list[bool]) -> list[bool]:
    """The flags of the characters that the bytes [position, position + width) belong to."""
    flags, at = [], 0
    for character, flag in zip(text, free, strict=True):
        size = len(character.encode())
        if at < position + width and position < at + size:
            flags.append(flag)
        at += size
    return flags
