"""The server engine against a real `transformers serve` process, killed and started again."""

import dataclasses
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.demo.run import MODEL
from prefkit.errors import ConfigError, PrefkitError
from prefkit.pairs.engines.base import SHORTENED, TOO_LONG, Request, seed_of
from prefkit.pairs.engines.local.engine import LocalEngine
from prefkit.pairs.engines.server.engine import ServerEngine
from prefkit.pairs.engines.server.finding import OTHER, VLLM, Server, ServerSettings, choose_model
from prefkit.pairs.engines.server.messages import body_of, completion_of
from prefkit.pairs.engines.server.patience import Unfinished
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.run.engines import open_engines
from tests.pairs.serving import serving

pytest.importorskip("fastapi", reason="transformers serve needs transformers[serving]")
pytest.importorskip("openai")
PROMPT = "59+1+9+7+8+4-5=\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(Path(MODEL), tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def engine(served):
    with closing(ServerEngine(served.url, str(MODEL))) as opened:
        yield opened


def ask(key, **more):
    settings = {"text": PROMPT, "temperature": 1.0, "max_tokens": 52, "seed": seed_of(0, key)}
    return Request(key=key, **{**settings, **more})


def run(engine, requests):
    found = {completion.key: completion for completion in engine.sample(requests)}
    assert set(found) == {request.key for request in requests}
    return found


def test_it_knows_the_server_and_that_its_seeds_hold_one_at_a_time(served, engine, capsys):
    assert (engine.kind, engine.lanes, engine.honours_seeds) == ("transformers serve", 1, True)
    options = BuildFields(model=str(MODEL), server=served.url)
    with closing(open_engines(options, None)["model"]) as other:
        assert other.lanes == 1
    assert "one request at a time" in capsys.readouterr().err
    with closing(ServerEngine(served.url, str(MODEL), ServerSettings(concurrency=3))) as forced:
        assert forced.lanes == 3
        assert len(run(forced, [ask(f"q/{i}") for i in range(6)])) == 6


def test_seeds_are_reproducible_and_settings_are_the_requests_own(engine):
    settings = [{"temperature": 0.0}, {}, {"top_p": 0.8}, {"temperature": 1.7}]
    requests = [ask(f"q/{i}", **settings[i % 4]) for i in range(8)]
    found = run(engine, requests)
    assert found == run(engine, requests[::-1])
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    for request in requests:
        torch.manual_seed(request.seed)
        how = {"temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        how = {"do_sample": True, **how} if request.temperature else {"do_sample": False}
        written = model.generate(ids, max_new_tokens=52, **how)[0, ids.shape[1] :]
        assert found[request.key].text == tokenizer.decode(written, skip_special_tokens=True)
        assert found[request.key].tokens == len(written)


def test_greedy_is_the_local_engines(engine):
    request = ask("q", temperature=0.0)
    local = LocalEngine(str(MODEL))
    assert run(engine, [request]) == run(local, [request])


def test_stop_texts_lengths_and_messages(engine):
    whole = run(engine, [ask("q", temperature=0.0)])["q"]
    lines = whole.text.splitlines(keepends=True)
    stopped = run(engine, [ask("q", temperature=0.0, stop=("\n" + lines[2][:3],))])["q"]
    assert (stopped.text, stopped.finish) == ("".join(lines[:2])[:-1], "stop")
    short = run(engine, [ask("q", temperature=0.0, max_tokens=4)])["q"]
    assert (short.text, short.finish, short.tokens) == (whole.text[:4], "length", 4)
    # The model's chat template writes the contents and a line break each.
    judged = ask(
        "q", temperature=0.0, text="", messages=({"role": "user", "content": PROMPT[:-1]},)
    )
    assert run(engine, [judged])["q"].text.strip() == whole.text.strip()


def test_a_server_killed_in_the_middle_changes_nothing(served, engine, capsys):
    requests = [ask(f"q/{i}", temperature=1.5) for i in range(24)]
    undisturbed = run(engine, requests)

    def kill_and_start():
        served.kill()
        time.sleep(1.5)
        served.start()

    found, disturbance = {}, threading.Thread(target=kill_and_start)
    for completion in engine.sample(requests):
        found[completion.key] = completion
        if len(found) == 6:
            disturbance.start()
    disturbance.join(timeout=100)
    assert found == undisturbed
    assert len({c.text for c in found.values()}) > 5
    told = capsys.readouterr().err
    assert told.count("waiting for it") == told.count("answers again") >= 1


def test_what_another_client_left_running_does_not_shift_the_seeds(served, engine):
    """A killed client's requests go on at the server and draw from the same random state."""
    requests = [ask(f"q/{i}", temperature=1.5) for i in range(3)]
    expected = run(engine, requests)
    with closing(ServerEngine(served.url, str(MODEL), ServerSettings(concurrency=8))) as gone:
        tasks = [ask(f"left/{i}", temperature=1.5) for i in range(8)]
        threading.Thread(target=lambda: list(gone.sample(tasks)), daemon=True).start()
        time.sleep(0.1)
        with closing(ServerEngine(served.url, str(MODEL))) as fresh:
            assert fresh.honours_seeds
            assert run(fresh, requests) == expected


def test_an_unknown_model_is_refused_with_the_servers_words(served):
    with pytest.raises(PrefkitError, match=rf"{served.url} refuses .*pinned.*elsewhere"):
        ServerEngine(served.url, "elsewhere")
    with pytest.raises(ConfigError, match="server_model"):
        ServerEngine(served.url)


def test_an_unknown_field_is_refused(served):
    with pytest.raises(PrefkitError, match="temprature"):
        ServerEngine(served.url, str(MODEL), ServerSettings(extra_body={"temprature": 1}))


def test_what_passes_the_models_positions_ends_no_build(engine, capsys):
    """`transformers serve` says no more than HTTP 500: 72 positions, a token is a character."""
    full = "1+" * 26 + "="  # 53, and 19 to write: what was asked for halves from 152 to 19
    requests = [ask("fine/s/0"), ask("long/s/0", text="1+" * 36)]
    requests.append(ask("near/s/0", text=full, temperature=0.0, max_tokens=152))
    found = run(engine, requests)
    assert (found["long/s/0"].text, found["long/s/0"].finish) == ("", "length")
    assert found["fine/s/0"] == run(engine, requests[:1])["fine/s/0"]
    near = found["near/s/0"]
    assert (near.finish, near.tokens, len(near.text)) == ("length", 19, 19)
    assert engine.notes == {TOO_LONG: 1, SHORTENED: 1}
    told = capsys.readouterr().err
    assert "long/s/0" in told
    assert "near/s/0, to 19 tokens" in told
    assert "waiting" not in told


def test_messages_that_the_server_fails_on_are_named_at_once(engine):
    messages = ({"role": "user", "content": "1+" * 50},)
    with pytest.raises(PrefkitError, match=r"request j/0 every time \(HTTP 500\)"):
        run(engine, [dataclasses.replace(ask("j/0", text=""), messages=messages)])


def test_chat_text_gets_one_bos(served, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(tmp_path)
    with closing(ServerEngine(served.url, str(MODEL), tokenizer=str(tmp_path))) as engine:
        assert engine._prompt(ask("q")) == {"prompt": PROMPT}
        chat = ask("q", is_chat=True, text="<eos>" + PROMPT)
        assert engine._prompt(chat) == {"prompt": PROMPT}
        with pytest.raises(ConfigError, match=r"Request q.*<eos>"):
            engine._prompt(ask("q", is_chat=True))
        engine.kind = VLLM
        assert engine._prompt(chat) == {"prompt": chat.text, "add_special_tokens": False}


def test_model_names():
    one, two = Server(VLLM, ("a",)), Server(OTHER, ("a", "b"))
    assert choose_model(one, None, "URL") == "a"
    assert choose_model(two, "b", "URL") == "b"
    for server, wanted in ((two, None), (one, "c")):
        with pytest.raises(ConfigError, match="a"):
            choose_model(server, wanted, "URL")


def test_vllm_is_told_to_forget_the_models_sampling_settings():
    request = ask("q", stop=("\n",))
    plain, vllm = body_of(request, "m", OTHER), body_of(request, "m", VLLM)
    assert plain["stop"] == ["\n"]
    assert {**plain, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0} == vllm


@pytest.mark.parametrize(
    ("choice", "finish", "text"),
    [
        ({"text": "4", "finish_reason": "stop", "stop_reason": None}, "end", "4"),  # vLLM
        ({"text": "4", "finish_reason": "stop", "stop_reason": "\n"}, "stop", "4"),
        ({"text": "4", "finish_reason": "stop", "matched_stop": "\n"}, "stop", "4"),  # SGLang
        ({"text": "4", "finish_reason": "stop", "matched_stop": 2}, "end", "4"),
        ({"text": "4\n5", "finish_reason": "length"}, "stop", "4"),
        ({"text": "4", "finish_reason": "length"}, "length", "4"),
        ({"text": "4", "finish_reason": "content_filter"}, "length", "4"),
    ],
)
def test_ends_as_servers_write_them(choice, finish, text):
    found = completion_of(ask("q", stop=("\n",)), {"choices": [choice]})
    assert (found.finish, found.text, found.tokens) == (finish, text, 0)
    with pytest.raises(Unfinished):
        completion_of(ask("q"), {"choices": [{**choice, "finish_reason": "abort"}]})
    chat = dataclasses.replace(ask("q"), messages=({"role": "user", "content": "?"},))
    answer = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    assert completion_of(chat, answer).text == ""


THOUGHT = {"reasoning_content": "Step 1: incorrect?"}
PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]


@pytest.mark.parametrize(
    ("message", "reason", "text", "finish", "note"),
    [
        ({"content": None, **THOUGHT}, "length", "", "length", "thought"),
        ({"content": "", "reasoning": "hm"}, "length", "", "length", "thought"),
        ({"content": None}, "length", "", "length", "thought"),  # the thought is not even shown
        ({"content": PARTS}, "length", "", "length", "thought"),
        ({"content": None, **THOUGHT}, "stop", "", "end", "thought"),
        ({"content": "Step 1: correct", **THOUGHT}, "stop", "Step 1: correct", "end", ""),
        ({"content": "Step 1: cor", **THOUGHT}, "length", "Step 1: cor", "length", ""),
        ({"content": [*PARTS, {"type": "text", "text": "fine"}]}, "stop", "fine", "end", ""),
        ({"content": None}, "content_filter", "", "length", "refused"),
        (None, "stop", "", "end", ""),
    ],
)
def test_a_thought_is_never_taken_for_what_is_said(message, reason, text, finish, note):
    chat = dataclasses.replace(ask("q"), messages=({"role": "user", "content": "?"},))
    found = completion_of(chat, {"choices": [{"message": message, "finish_reason": reason}]})
    assert (found.text, found.finish, found.note) == (text, finish, note)
    plain = completion_of(ask("q"), {"choices": [{"text": None, "finish_reason": "length"}]})
    assert (plain.text, plain.finish, plain.note) == ("", "length", "")
