"""What is scored under the chat templates of current models, against what they write themselves."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from prefkit.data import ReadOptions, TokenizeOptions, prepare_pairs
from prefkit.data.text.template import ChatTemplate
from prefkit.errors import ConfigError, RowError
from tests.data.chat_cases import (
    CASES,
    FAMILIES,
    QUESTION,
    TOOLS,
    cell_of,
    row_of,
    runs,
    said,
    table,
    tokenizer_for,
    trl,
    used_tool,
)

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
NAMES = tuple(FAMILIES.values())


NO_FIELD = ("qwen3_instruct_2507", "deepseek_r1_distill", "deepseekv3", "gemma3", "llama3_1")
NO_TOOLS = ("deepseek_r1_distill", "deepseekv3", "gemma3", "nemotron_3_nano")
REFUSED = {
    "plain": ("deepseek_r1_distill", "deepseekv3", "nemotron_3_nano"),
    "plain, no thinking": (*NO_FIELD, "gptoss", "lfm2_2_5_v2"),
    "thought in field": NO_FIELD,
    "begun turn": ("gptoss",),
    "tools": NO_TOOLS,
}
WRITTEN = [
    (case, name)
    for case in CASES
    for name in NAMES
    if case != "begun turn" and name not in REFUSED.get(case, ())
]


def whole_of(name: str, case: str) -> tuple[str, str]:
    """(what sampling shows, the whole conversation), both as the template itself has them."""
    row, tokenizer = row_of(case, name), tokenizer_for(name)
    how = {"tokenize": False, "tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    shown = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **how)
    return shown, tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]], **how)


def test_which_template_refuses_what() -> None:
    found = {
        case: tuple(name for name in NAMES if cell_of(case, name).startswith("refused"))
        for case in CASES
    }
    assert {case: set(names) for case, names in found.items() if names} == {
        case: set(names) for case, names in REFUSED.items()
    }


@pytest.mark.parametrize(("case", "name"), WRITTEN)
def test_a_row_is_what_sampling_shows_and_then_what_the_template_writes(
    case: str, name: str
) -> None:
    shown, whole = whole_of(name, case)
    pieces = list(runs(row_of(case, name), tokenizer_for(name)))
    text = "".join(piece for _, piece in pieces)
    assert pieces[0] == (False, shown)
    if case == "thought in text" and name.startswith("deepseek"):
        assert whole.endswith("｜Assistant｜>\n\n4<｜end▁of▁sentence｜>")  # it drops the thought
        assert text == shown + "Two and two.\n</think>\n\n4<｜end▁of▁sentence｜>"
    elif name == "glm4moe":
        assert text == whole + "<|endoftext|>"  # it writes no end of a last turn
    else:
        assert whole.startswith(text)
        assert not whole[len(text) :].strip()
    ids = prepare_pairs([row_of(case, name)], tokenizer_for(name)).pairs[0].chosen.ids.tolist()
    front = tokenizer_for(name)(shown, add_special_tokens=False)["input_ids"]
    assert ids[: len(front)] == front


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gptoss"])
def test_a_begun_turn_goes_on_where_it_stopped(name: str) -> None:
    row, tokenizer = row_of("begun turn", name), tokenizer_for(name)
    shown = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    (_, front), (scored, text) = runs(row, tokenizer)
    begun = "Step 1:" if shown.rstrip().endswith("<think>") else "<think>\nStep 1:"
    assert (front, scored) == (shown + begun, True)
    assert text.startswith(" two and two.\n</think>\n4<")
    assert (front + text).count("<think>") == 1


def test_the_docs_have_this_table() -> None:
    assert table() in DOCS.read_text(), "write the output of python -m tests.data.chat_cases there"


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6"])
def test_tool_results_are_context_unless_asked_for(name: str) -> None:
    row, tokenizer = row_of("tools", name), tokenizer_for(name)
    text = "".join(text for scored, text in runs(row, tokenizer) if scored)
    assert "<tool_response>" not in text
    pair = (
        prepare_pairs([row], tokenizer, reading=ReadOptions(mask_tool_output=False)).pairs[0].chosen
    )
    first = int(pair.scored.argmax())
    assert pair.scored[first:].all()
    assert "<tool_response>" in tokenizer.decode(pair.ids[first:])


# ------------------------------------------------------------------------------------- refusals

R1, NEMOTRON = "deepseek_r1_distill", "nemotron_3_nano"
OPEN = said("<think>\nfour")  # a thought that never ends
UNREAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "field": (
        "qwen3",
        {"chosen": said("4", plan="add")},
        r"'chosen': holds 'plan', which the chat template does not read\. Remove it, or set",
    ),
    "thought": (
        "llama3_1",
        {"chosen": said("4", thinking="four")},
        r"'chosen': holds 'thinking', which the chat template does not read\. Name it 'reasoning_",
    ),
    "pairs that differ only there": (
        "qwen3_instruct_2507",
        {"chosen": said("4", reasoning_content="a"), "rejected": said("4", reasoning_content="b")},
        "holds 'reasoning_content', which the chat template does not read",
    ),
    "name": (
        "qwen3",
        {"prompt": [{"role": "user", "content": "2 + 2?", "name": "Ann"}]},
        r"'prompt\[0\]': holds 'name', which the chat template does not read",
    ),
    "calls": (
        "gemma3",
        {"chosen": used_tool(2, "4", "gemma3")},
        r"is refused by the chat template|holds 'tool_calls', which the chat template does not",
    ),
    "tools": ("gemma3", {"tools": TOOLS}, "'tools': are not read by the chat template"),
    "parts": (
        "qwen3",
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]},
        "'prompt': is lost in the chat template.*Write the content as one string",
    ),
    "parts of a response": (
        "qwen3",
        {"chosen": [{"role": "assistant", "content": [{"type": "text", "text": "4"}]}]},
        "'chosen': holds a message of assistant that is lost.*Write the content as one string",
    ),
    "parts printed as code": (
        "llama3_1",
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]},
        "'prompt': holds a list of parts, which the chat template prints as code: {'type': 'text'",
    ),
    "parts that a template adds to a string": (
        "qwen2_5",
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]},
        r"'prompt': is refused by the chat template \(TypeError.*Write the content as one string",
    ),
    "a thought closed that nothing opened": (
        "llama3_1",
        {"chosen": said("two and two</think>4")},
        "'chosen': closes a thought that is not open",
    ),
    "a thought closed by another mark": (
        "qwen3_6",
        {"chosen": said("four</thinking>4")},
        "'chosen': is an answer inside the thought that '<|im_start|>assistant",
    ),
    "a begun thought after a closed one": (
        "qwen3",
        {
            "prompt": [*QUESTION, {"role": "assistant", "content": "<think>\nx"}],
            "chosen": said("y</think>4"),
            "chat_template_kwargs": {"enable_thinking": False},
        },
        "'prompt': ends in a begun turn that opens another thought than",
    ),
    "words in an open header": (
        "gptoss",
        {
            "prompt": [*QUESTION, {"role": "assistant", "content": "The sum is"}],
            "chosen": said(" 4"),
            "rejected": said(" 5"),
        },
        "'prompt': would stand in the turn's header: the chat template writes '<|channel|>final",
    ),
    "system text": (
        "glm4moe",
        {"prompt": [{"role": "developer", "content": "Be brief."}, *QUESTION]},
        "holds a message of developer that is lost in the chat template",
    ),
    "variable": (
        "llama3_1",
        {"chat_template_kwargs": {"enable_thinking": False}},
        "'chat_template_kwargs': holds 'enable_thinking', of which the chat template knows nothing",
    ),
    "answer in an open thought": (
        NEMOTRON,
        {},
        r"'chosen': is an answer inside the thought .*Say chat_template_kwargs: "
        r"{\"enable_thinking\": false}, if",
    ),
    "no switch that helps": (R1, {}, "is an answer inside the thought .*Give the response its tho"),
    "a second opening": (
        "qwen3",
        {"prompt": [*QUESTION, *said("<think>\nStep 1:")], "chosen": said("<think>\n4</think>4")},
        "'chosen': opens the thought a second time",
    ),
    "a thought after a closed one": (
        "qwen3",
        {"chat_template_kwargs": {"enable_thinking": False}, "chosen": said("<think>a</think>4")},
        r"'chosen': opens a thought after .*Say chat_template_kwargs: {\"enable_thinking\": true}",
    ),
    "a thought in a field after a closed one": (
        "qwen3",
        {
            "chat_template_kwargs": {"enable_thinking": False},
            "chosen": said("4", reasoning_content="four"),
        },
        r"'chosen': is written by the chat template otherwise .*{\"enable_thinking\": true}, with",
    ),
    "two messages after a begun turn": (
        "qwen3",
        {"prompt": [*QUESTION, *said("It")], "chosen": [*said("is 4"), *QUESTION, *said("4")]},
        "'chosen': holds 3 messages, but continues a turn that the row has begun",
    ),
    "a field after a begun turn": (
        "qwen3",
        {"prompt": [*QUESTION, *said("It")], "chosen": said(" is 4", reasoning_content="a")},
        "'chosen': holds 'reasoning_content', but continues a turn",
    ),
}


THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n' }}{% endif %}{{ m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
LAST_ONLY = (  # of the user's turns
    "{% for m in messages %}{% if m.role != 'user' or loop.last %}{{ m.role + m.content }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


def test_a_template_that_opens_a_thought_by_itself_trains_no_answer_in_it() -> None:
    row, options = row_of("plain", "qwen3"), TokenizeOptions(chat_template=THINKS)
    with pytest.raises(RowError, match="'chosen': is an answer inside the thought"):
        prepare_pairs([row], tokenizer_for("qwen3"), options)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "glm4moe", "nemotron_3_nano"])
def test_a_thought_in_field_and_text_at_once_is_refused(name: str) -> None:
    chosen = said("<think>\na\n</think>\n\n4", reasoning_content="b")
    row = {"prompt": QUESTION, "chosen": chosen, "rejected": said("5", reasoning_content="c")}
    with pytest.raises(RowError, match=r"'chosen': .*with a thought that is opened twice"):
        prepare_pairs([row], tokenizer_for(name))


def test_earlier_turns_of_the_user_are_not_lost() -> None:
    turns = [{"role": "user", "content": "I am Ann."}, *said("Hello."), *QUESTION]
    row = {"prompt": turns, "chosen": said("4"), "rejected": said("5")}
    with pytest.raises(RowError, match=r"'prompt': is lost in the chat template"):
        prepare_pairs([row], tokenizer_for("qwen3"), TokenizeOptions(chat_template=LAST_ONLY))


@pytest.mark.parametrize("content", ["Let me add.", "add", "What is 2 + 2?"])
def test_words_beside_a_call_are_not_lost(content: str) -> None:
    """Llama's template drops them, also where the same words stand elsewhere."""
    row = row_of("tools", "llama3_1")
    row["chosen"][0]["content"] = content
    with pytest.raises(RowError, match="'chosen': holds a message of assistant that is lost"):
        prepare_pairs([row], tokenizer_for("llama3_1"))


def test_a_thought_that_only_repeats_the_answer_is_not_taken_as_read() -> None:
    row = {"prompt": QUESTION, "chosen": said("4", reasoning_content="4"), "rejected": said("5")}
    with pytest.raises(RowError, match="holds 'reasoning_content', which the chat template does"):
        prepare_pairs([row], tokenizer_for("llama3_1"))


def test_what_the_template_writes_before_the_end_of_a_turn_is_scored() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ' ' + m.content + ' |END| <|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
    )
    tokenizer, options = tokenizer_for("qwen3"), TokenizeOptions(chat_template=template)
    side = prepare_pairs([row_of("plain", "qwen3")], tokenizer, options).pairs[0].chosen
    assert tokenizer.decode(side.ids[side.scored]) == " 4 |END| <|im_end|>"


def test_many_turns_cost_a_rendering_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a dozen: rows of tool calls may have many turns, each of thousands of tokens."""
    counted: list[int] = []
    write = ChatTemplate.write

    def counting(self: ChatTemplate, *args: Any, **how: Any) -> str:
        counted.append(1)
        return write(self, *args, **how)

    monkeypatch.setattr(ChatTemplate, "write", counting)
    turns = [used_tool(i, str(i), "qwen3")[:2] for i in range(40)]
    chosen, rejected = ([m for turn in part for m in turn] for part in (turns[:20], turns[20:]))
    row = {"prompt": QUESTION, "tools": TOOLS}
    row |= {"chosen": [*chosen, *said("0")], "rejected": [*rejected, *said("1")]}
    prepare_pairs([row], tokenizer_for("qwen3"))
    assert sum(counted) < 2 * 21 + 20


@pytest.mark.parametrize("kind", list(UNREAD))
def test_what_would_be_lost_or_doubled_is_refused_by_name(kind: str) -> None:
    name, fields, message = UNREAD[kind]
    row = {"prompt": QUESTION, "chosen": said("4"), "rejected": said("5"), **fields}
    with pytest.raises(
        RowError, match=f"row 0, field {'' if message[0] == chr(39) else '.*'}{message}"
    ):
        prepare_pairs([row], tokenizer_for(name))


def test_a_misspelt_variable_is_refused_before_any_row() -> None:
    options = TokenizeOptions(chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(ConfigError, match="'enable_thinkin', of which the chat template knows"):
        prepare_pairs([row_of("plain", "qwen3")], tokenizer_for("qwen3"), options)


def test_thoughts_of_earlier_turns_may_be_left_out_as_the_template_does() -> None:
    prompt = [*QUESTION, *said("4", reasoning_content="four"), {"role": "user", "content": "Why?"}]
    row = {"prompt": prompt, "chosen": said("So."), "rejected": said("No.")}
    (_, front), _ = runs(row, tokenizer_for("qwen3"))
    assert "four" not in front


def test_ids_that_only_link_messages_are_no_text() -> None:
    chosen = used_tool(2, "4", "qwen3")
    chosen[0]["tool_calls"][0]["id"] = "call_1"
    chosen[1] |= {"tool_call_id": "call_1", "name": "add"}
    row = {**row_of("tools", "qwen3"), "chosen": chosen}
    assert list(runs(row, tokenizer_for("qwen3"))) == list(
        runs(row_of("tools", "qwen3"), tokenizer_for("qwen3"))
    )


def test_an_unfinished_thought_keeps_its_one_mark_and_no_end_is_taught_in_it() -> None:
    row = {"prompt": QUESTION, "chosen": said("4"), "rejected": OPEN}
    tokenizer = tokenizer_for("qwen3")  # whose template puts an empty thought before it
    with pytest.raises(RowError, match="'rejected': ends in a thought that it opens"):
        prepare_pairs([row], tokenizer)
    side = prepare_pairs([{**row, "append_eos": False}], tokenizer).pairs[0].rejected
    assert tokenizer.decode(side.ids[side.scored]) == "<think>\nfour"


def two_calls(*arguments: Any) -> list[dict[str, Any]]:
    calls = [{"type": "function", "function": {"name": "add", "arguments": a}} for a in arguments]
    return [{"role": "assistant", "content": "", "tool_calls": calls}]


def test_a_second_call_is_not_lost() -> None:
    row = {**row_of("tools", "gptoss"), "chosen": two_calls({"a": 2}, {"a": 3333})}
    with pytest.raises(RowError, match=r"'chosen': holds 'tool_calls\[1\]', which the chat templ"):
        prepare_pairs([row], tokenizer_for("gptoss"))
    text = "".join(text for scored, text in runs(row, tokenizer_for("qwen3")) if scored)
    assert "3333" in text


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "glm4moe", "gptoss", "llama3_1", "gemma4_v5"])
def test_arguments_as_text_are_those_of_the_object(name: str) -> None:
    as_object = {**row_of("tools", name), "chosen": two_calls({"a": 2})}
    as_text = {**as_object, "chosen": two_calls('{"a": 2}')}
    tokenizer = tokenizer_for(name)
    options = TokenizeOptions()
    assert (
        prepare_pairs([as_text], tokenizer, options).fingerprint
        == prepare_pairs([as_object], tokenizer, options).fingerprint
    )


def test_a_thought_that_is_dropped_before_other_turns_is_told_so() -> None:
    turn = used_tool(2, "4", "gptoss")
    turn[0]["thinking"] = "Add them."
    turns = [*turn[:2], *said("It is 4."), {"role": "user", "content": "Sure?"}, *said("Yes.")]
    turns[2]["thinking"] = "So four."
    row = {**row_of("tools", "gptoss"), "chosen": turns}
    with pytest.raises(RowError, match="holds 'thinking' in a turn that others follow"):
        prepare_pairs([row], tokenizer_for("gptoss"))


def test_a_begun_channel_is_ended_by_the_response() -> None:
    """gpt-oss ends every channel by one token, which closes a thought only where one is open."""
    begun = {"role": "assistant", "content": "<|channel|>analysis<|message|>so "}
    ends = "<|end|><|start|>assistant<|channel|>final<|message|>"
    row = {"prompt": [*QUESTION, begun], "chosen": said(f"four{ends}4")}
    (_, front), (_, text) = runs({**row, "rejected": said(f"five{ends}5")}, tokenizer_for("gptoss"))
    assert front.endswith("<|start|>assistant<|channel|>analysis<|message|>so ")
    assert text == f"four{ends}4<|return|>"


def test_strings_that_begin_the_turn_are_looked_at_row_by_row() -> None:
    """A first row in the right form says nothing of the second."""
    final = "<|channel|>final<|message|>"
    rows = [{"prompt": QUESTION, "chosen": f"{final}4", "rejected": f"{final}5"}]
    rows += [{"prompt": QUESTION, "chosen": "4", "rejected": "5"}]
    tokenizer = tokenizer_for("gptoss")
    assert tokenizer.decode(prepare_pairs(rows[:1], tokenizer).pairs[0].chosen.ids).endswith(
        f"<|start|>assistant{final}4<|return|>"
    )
    with pytest.raises(RowError, match="row 1, field 'chosen': would stand in the turn's header"):
        prepare_pairs(rows, tokenizer)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_v5"])
def test_arguments_as_json_text_are_written_as_the_template_writes_objects(name: str) -> None:
    row, tokenizer = row_of("tools", "gemma4_v5"), tokenizer_for(name)
    (call,) = row["chosen"][0]["tool_calls"]
    as_text = {**call, "function": {**call["function"], "arguments": '{"a": 2}'}}
    other = [{**row["chosen"][0], "tool_calls": [as_text]}, *row["chosen"][1:]]
    found = [list(runs({**row, "chosen": chosen}, tokenizer)) for chosen in (row["chosen"], other)]
    assert found[0] == found[1]


def test_a_prefix_of_messages_is_a_begun_turn() -> None:
    row = {
        "prompt": QUESTION,
        "prefix": "Step 1: add.\n",
        "chosen": said("So 4."),
        "rejected": said("No."),
    }
    pieces = list(runs(row, tokenizer_for("llama3_1")))
    assert pieces[0][1].endswith("\n\nStep 1: add.\n")
    assert pieces[1] == (True, "So 4.")


def test_no_speaker_is_lost() -> None:
    row = {
        "prompt": [{"role": "human", "content": "2 + 2?"}],
        "chosen": said("4"),
        "rejected": said("5"),
    }
    with pytest.raises(RowError, match="'prompt': holds a message of human that is lost"):
        prepare_pairs([row], tokenizer_for("qwen3"))


def test_weights_speak_of_what_the_template_writes() -> None:
    row, tokenizer = row_of("thought in field", "qwen3"), tokenizer_for("qwen3")
    side = prepare_pairs([row], tokenizer).pairs[0].rejected
    ids = side.ids[side.scored].tolist()
    weights = [round(0.01 * (i + 1), 2) for i in range(len(ids))]
    weighted = {**row, "rejected_weights": {"ids": ids, "weights": weights}}
    found = prepare_pairs([weighted], tokenizer).pairs[0].rejected
    assert found.weights[found.scored] == pytest.approx(weights)


def test_what_the_user_says_between_is_context_always() -> None:
    middle = [*said("Four."), {"role": "user", "content": "Sure?"}]
    row = {"prompt": QUESTION, "chosen": [*middle, *said("Yes.")], "rejected": said("5")}
    tokenizer = tokenizer_for("llama3_1")
    for reading in (ReadOptions(), ReadOptions(mask_tool_output=False)):
        side = prepare_pairs([row], tokenizer, reading=reading).pairs[0].chosen
        assert tokenizer.decode(side.ids[side.scored]) == "Four.<|eot_id|>Yes.<|eot_id|>"


# ------------------------------------------------------------------------------------ beside TRL


def fifty_rows(name: str) -> list[dict[str, Any]]:
    """Ten each of: plain, with a system text, several turns, a thought in a field, tools."""
    rows = []
    for i in range(10):
        asked = [{"role": "user", "content": f"What is {i} + {i}?"}]
        right, wrong = said(f"It is {2 * i}."), said(f"It is {2 * i + 1}.")
        plain = {"prompt": asked, "chosen": right, "rejected": wrong}
        system = [{"role": "system", "content": f"Be brief: {i} words."}]
        turns = [*asked, *right, {"role": "user", "content": "Are you sure?"}]
        thought = row_of("thought in field", name)
        tools = row_of("tools", name)
        rows += [
            plain,
            {**plain, "prompt": [*system, *asked]},
            {**plain, "prompt": turns},
            {**thought, "prompt": asked},
            {**tools, "prompt": asked},
        ]
    return rows


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "lfm2_2_5_v2"])
def test_fifty_conversations_have_the_tokens_that_trl_gives_them(name: str, tmp_path: Path) -> None:
    from tests.loss.test_against_trl import small_llama

    tokenizer, rows = tokenizer_for(name), fifty_rows(name)
    theirs = trl.DPOTrainer(
        small_llama(tie=True),
        ref_model=small_llama(tie=True),
        args=trl.DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list([{**row, "tools": row.get("tools")} for row in rows]),
        processing_class=tokenizer,
    ).train_dataset
    for row, ours, their in zip(rows, prepare_pairs(rows, tokenizer).pairs, theirs, strict=True):
        for side, answer in ((ours.chosen, row["chosen"]), (ours.rejected, row["rejected"])):
            field = "chosen_ids" if side is ours.chosen else "rejected_ids"
            ids, start = [*their["prompt_ids"], *their[field]], len(their["prompt_ids"])
            mine = side.ids.tolist()
            # TRL also trains what the template writes after the end of the turn, a line break.
            assert mine == ids[: len(mine)]
            assert not tokenizer.decode(ids[len(mine) :]).strip()
            assert int(side.scored.argmax()) == start
            assert side.scored[start:].all() == (len(answer) == 1)  # tool results are context here
