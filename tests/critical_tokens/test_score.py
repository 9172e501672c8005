"""`prefkit score`: the definition in fp64, the same tokens in training, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefkit.cli.score import run
from prefkit.critical_tokens import ScoreFields, score_pairs
from prefkit.data import ReadOptions, TokenizeOptions, prepare_pairs
from prefkit.errors import ConfigError, ModelError, PrefkitError, RowError
from tests.train.trainer_cases import byte_tokenizer, save_model, tiny_model

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = [
    {"prompt": f"{a}+{b}=", "chosen": f" {a + b}", "rejected": f" {a + b + 1}" + ", sure" * a}
    for a in range(4)
    for b in range(3)
]


def two(family: str = "llama", scale: float = 9.0) -> tuple[Any, Any]:
    return tiny_model(family, 1, scale).double().eval(), tiny_model(
        family, 2, scale
    ).double().eval()


def by_definition(models: tuple[Any, Any], prompt: str, text: str, beta: float) -> np.ndarray:
    """log s = (1+β)·log π_p − β·log π_n − log Z of the text's tokens, from whole logits in fp64."""
    read = byte_tokenizer()
    front, back = read(prompt)["input_ids"], read(text)["input_ids"]
    ids = torch.tensor([front + back])
    with torch.no_grad():
        pos, neg = (m(input_ids=ids).logits[0, len(front) - 1 : -1].log_softmax(1) for m in models)
    log_s = ((1 + beta) * pos - beta * neg).log_softmax(1)
    return log_s.gather(1, torch.tensor(back)[:, None])[:, 0].exp().numpy()


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "gpt2"])
@pytest.mark.parametrize("beta", [1.0, 1.75])
def test_weights_are_one_minus_the_definition(family: str, beta: float) -> None:
    models = two(family)
    options = ScoreFields(beta=beta, batch_size=5, sides="both")
    scored = score_pairs(ROWS, *models, options, tokenizer=byte_tokenizer())
    exact = 1e-3 if family in ("gemma2", "cohere", "granite") else 1e-5  # layers in fp32
    for row, given in zip(scored.rows, ROWS, strict=True):
        want = by_definition(models, row["prompt"], row["rejected"], beta)
        np.testing.assert_allclose(row["rejected_weights"]["weights"], 1 - want, atol=1e-5)
        assert row["rejected_weights"]["ids"] == byte_tokenizer()(row["rejected"])["input_ids"]
        want = by_definition(models, row["prompt"], row["chosen"], beta)
        np.testing.assert_allclose(row["chosen_scores"]["scores"], want, rtol=exact)
        assert {k: row[k] for k in given} == given
    rejected = [by_definition(models, r["prompt"], r["rejected"], beta) for r in ROWS]
    np.testing.assert_allclose(scored.scores, np.concatenate(rejected), rtol=exact)


@pytest.mark.parametrize("form", ["weights", "prob_result"])
@pytest.mark.parametrize(
    "options",
    [{}, {"prompt_template": "Q: {prompt}\nA:", "joiner": " "}, {"string_prompts": "chat"}],
)
def test_training_reads_the_weights_for_the_same_tokens(form: str, options: Any) -> None:
    if "string_prompts" in options:
        options = {**options, "chat_template": "plain"}
    tokenizer = byte_tokenizer()
    models = two()
    scored = score_pairs(
        ROWS,
        *models,
        ScoreFields(format=form, **options),
        tokenizer=tokenizer,  # type: ignore[arg-type]
    )
    plain = prepare_pairs(ROWS, tokenizer, TokenizeOptions(**options)).pairs
    read = prepare_pairs(
        scored.rows, tokenizer, TokenizeOptions(**options), ReadOptions(level="auto")
    ).pairs
    template = options.get("prompt_template", "{prompt}")
    for row, pair, before in zip(ROWS, read, plain, strict=True):
        assert pair.rejected.ids.tolist() == before.rejected.ids.tolist()
        assert (pair.chosen.weights == before.chosen.weights).all()
        front = template.replace("{prompt}", row["prompt"]) + options.get("joiner", "")
        front += "\n" * ("string_prompts" in options)
        want = 1 - by_definition(models, front, row["rejected"], 1.0)
        got = pair.rejected.weights[pair.rejected.scored]
        np.testing.assert_allclose(got[:-1], want, atol=1e-6)
        assert got[-1] == 1  # the end token
        assert pair.rejected.eos


def test_steps_messages_and_masked_tool_output() -> None:
    blocks = [{"type": "code", "content": "1+1"}, {"type": "execution", "content": "3"}]
    ask = {"role": "user", "content": "1+1?"}
    rows = [
        {"prompt": "2+2=", "prefix": " well,", "chosen": " 4", "rejected": " 5"},
        {
            "chosen": [ask, {"role": "assistant", "content": "two"}],
            "rejected": [ask, {"role": "assistant", "content": [*blocks, *blocks[:1]]}],
        },
    ]
    options = ScoreFields(level="step", chat_template="plain")
    scored = score_pairs(rows, *two(), options, tokenizer=byte_tokenizer())
    text = TokenizeOptions(chat_template="plain")
    step, tool = prepare_pairs(scored.rows, byte_tokenizer(), text, ReadOptions(level="step")).pairs
    assert not step.rejected.eos
    want = 1 - by_definition(two(), "2+2= well,", " 5", 1.0)
    np.testing.assert_allclose(step.rejected.weights[step.rejected.scored], want, atol=1e-6)
    masked = ~tool.rejected.scored[5:]
    assert masked.any()
    assert (tool.rejected.weights[tool.rejected.scored][:-1] != 1).all()


def test_an_end_token_in_the_text_keeps_weight_1() -> None:
    rows = [{"prompt": "a", "chosen": "b<eos>", "rejected": "cd<eos>"}]
    for form in ("weights", "prob_result"):
        options = ScoreFields(format=form)  # type: ignore[arg-type]
        scored = score_pairs(rows, *two(), options, tokenizer=byte_tokenizer())
        pair = prepare_pairs(scored.rows, byte_tokenizer()).pairs[0]
        assert pair.rejected.ids.tolist()[-1] == 256
        assert len(pair.rejected.ids) == 4
        assert pair.rejected.weights[-1] == 1
        assert (pair.rejected.weights[1:3] < 1).all()


def adapters(folder: Path) -> tuple[str, str]:
    """Two adapters of one saved model."""
    base = save_model(folder / "base", scale=3.0)
    for seed, name in enumerate(("positive", "negative")):
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        lora = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(
            folder / name
        )
    return str(folder / "positive"), str(folder / "negative")


def test_two_adapters_of_one_model_are_two_models(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names = adapters(tmp_path)
    merged = []
    for name in names:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        merged.append(PeftModel.from_pretrained(base, name).merge_and_unload().double().eval())
    scored = score_pairs(ROWS, *names)
    for row in scored.rows:
        want = by_definition((merged[0], merged[1]), row["prompt"], row["rejected"], 1.0)
        np.testing.assert_allclose(row["rejected_weights"]["weights"], 1 - want, atol=2e-5)
    merged[1].float().save_pretrained(tmp_path / "whole")
    byte_tokenizer().save_pretrained(tmp_path / "whole")
    mixed = score_pairs(ROWS, names[0], str(tmp_path / "whole"))
    np.testing.assert_allclose(mixed.scores, scored.scores, atol=2e-5)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROWS[0], "rejected_weights": [1.0, 2.0]}, "'rejected_weights': is there already"),
        ({**ROWS[0], "prob_result": {}}, "'prob_result': is there already"),
        ({**ROWS[0], "rejected_spans": []}, "'rejected_spans': is there already"),
        ({"prompt": "a", "responses": ["b", "c"], "pairs": [[0, 1]]}, "several pairs of one row"),
        ({"prompt": "a", "prefix": "b", "chosen": "c", "rejected": "d"}, "leaves open where"),
        ({**ROWS[0], "prefix": "b", "full_chosen": "c", "full_rejected": "d"}, "single step"),
        ({"prompt": "a", "chosen": "c", "rejected": "x" * 300}, "more than max_length 256"),
        ({"prompt": "a", "chosen": "c"}, "'rejected': is missing"),
    ],
)
def test_rows_that_cannot_be_scored(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=f"row 1.*{said}"):
        score_pairs([ROWS[0], row], *two(), tokenizer=byte_tokenizer())
    options = ScoreFields(on_bad_row="skip", too_long="skip")
    scored = score_pairs([row, ROWS[0]], *two(), options, tokenizer=byte_tokenizer())
    assert [r["prompt"] for r in scored.rows] == [ROWS[0]["prompt"]]
    assert (scored.skipped.total(), scored.incidents[0].row) == (1, 0)


def test_bad_options_and_models(tmp_path: Path) -> None:
    for changes, said in (
        ({"beta": -1.0}, "beta is -1"),
        ({"too_long": "truncate_end"}, "cannot read those that are cut"),
        ({"format": "prob_result", "sides": "both"}, "both sides already"),
        ({"batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            ScoreFields(**changes)
    positive, negative = save_model(tmp_path / "p"), save_model(tmp_path / "n")
    other = byte_tokenizer()
    other.add_tokens([f"<{i}>" for i in range(9)])
    other.save_pretrained(negative)
    for models, said in (
        ((positive, negative), "has another tokenizer"),
        ((positive, str(tmp_path / "no" / "where" / "at all")), "there is no folder"),
        ((positive, str(tmp_path)), "holds no config.json"),
        ((tiny_model(), 3), "negative is a int"),
    ):
        with pytest.raises(ModelError, match=said):
            score_pairs(ROWS, *models)
    with pytest.raises(ConfigError, match="negative is a name"):
        score_pairs(ROWS, tiny_model(), negative)
    with pytest.raises(ConfigError, match="tokenizer is missing"):
        score_pairs(ROWS, *two())


def test_a_response_without_any_critical_token_is_left_out() -> None:
    """Every weight 0: training would refuse the row, so it is listed instead of written."""
    models = tiny_model("gpt2", 1), tiny_model("gpt2", 2)
    sure = byte_tokenizer()("c")["input_ids"][0]
    with torch.no_grad():  # whatever was read, both heads see the first unit vector
        for model, logit in zip(models, (200.0, -200.0), strict=True):
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.copy_(torch.eye(16)[0])
            model.lm_head.weight[:, 0] = 0
            model.lm_head.weight[sure, 0] = logit
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, ROWS[0]]
    scored = score_pairs(rows, *models, tokenizer=byte_tokenizer())
    assert [row["rejected"] for row in scored.rows] == [ROWS[0]["rejected"]]
    assert (scored.incidents[0].row, scored.incidents[0].field) == (0, "rejected")
    assert "no critical token" in scored.incidents[0].problem


# -- the command ----------------------------------------------------------------------------------


def files(folder: Path, rows: Any = None) -> list[str]:
    """Pairs and two models on disk, as words of the command."""
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    models = [save_model(folder / name, seed=i, scale=3.0) for i, name in enumerate("pn")]
    out = str(folder / "out.jsonl")
    return [str(pairs), "--positive", models[0], "--negative", models[1], "--out", out]


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    words = files(tmp_path, [*ROWS, {"prompt": "a", "chosen": "b", "rejected": "x" * 300}])
    with pytest.raises(RowError, match="row 12"):
        run(words)
    assert run([*words, "--too_long", "skip", "--beta", "1.5"]) == 0
    said = capsys.readouterr().out
    assert "12 of 13 pairs scored" in said
    assert f"prefkit train --method cdpo --train_data {tmp_path}/out.jsonl" in said
    assert json.loads((tmp_path / "out.jsonl.skipped.jsonl").read_text())["row"] == 12
    assert not (tmp_path / "out.jsonl.scores").exists()
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    want = score_pairs(ROWS, words[2], words[4], ScoreFields(beta=1.5))
    assert written == want.rows
    with pytest.raises(ConfigError, match="is there already"):
        run(words)
    out = str(tmp_path / "released.json")
    assert run([*words[:-1], out, "--format", "prob_result", "--too_long", "skip"]) == 0
    columns = json.loads((tmp_path / "released.json").read_text())
    assert sorted(columns) == ["chosen", "prob_result", "prompt", "rejected"]
    entry = columns["prob_result"][0]["neg"]
    assert len(entry["ce_prob"]) == len(ROWS[0]["prompt"] + ROWS[0]["rejected"]) - 1
    assert prepare_pairs(out, byte_tokenizer()).report.weighted_rows == 12


def test_the_command_s_mistakes(tmp_path: Path) -> None:
    words = files(tmp_path)
    for changed, said in (
        (words[1:], "Name one file"),
        (words[:3], "negative is missing"),
        ([*words, "--batchsize", "3"], "Did you mean 'batch_size'"),
        ([*words, "--beta"], "beta needs a value"),
        ([*words, "--beta", "high"], "beta is 'high'"),
        ([*words, "--format", "prob_result"], "must end in .json with"),
        ([*words, "--beta", "1", "2"], "takes one value"),
        ([*words[:4], f"{tmp_path}/n/../p", *words[5:]], "positive and negative are both"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(changed)
    with pytest.raises(PrefkitError, match="no such file"):
        run([str(tmp_path / "none.jsonl"), *words[1:]])


def test_a_killed_run_goes_on(tmp_path: Path, capsys: Any) -> None:
    """Killed with 9 after some batches, its last line torn: the outcome is the same bytes."""
    rows = [{**row, "prompt": f"{i}: {row['prompt']}"} for i in range(60) for row in ROWS]
    words = [*files(tmp_path, rows), "--batch_size", "4"]
    work = tmp_path / "out.jsonl.scores"
    script = "import sys; from prefkit.cli.score import run; run(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels/torch-ext'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not work.exists() or work.stat().st_size < 2000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = work.read_bytes().count(b"\n")
    with open(work, "ab") as file:
        file.write(b'{"task": 3, "sco')
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ConfigError, match="other models, rows or options"):
        run([*words, "--beta", "2"])
    assert run(words) == 0
    assert before > 1
    killed = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    assert run(words) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == killed
