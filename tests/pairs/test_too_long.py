"""Prompts beyond a server's context: told from other refusals, shortened where that helps."""

import itertools
import types
from contextlib import closing

import pytest

from prefkit.errors import PrefkitError
from prefkit.pairs.engines.base import SHORTENED, TOO_LONG, Request
from prefkit.pairs.engines.server.engine import ServerEngine
from prefkit.pairs.engines.server.finding import ServerSettings
from prefkit.pairs.engines.server.patience import fewer_tokens, is_too_long
from tests.pairs.tiny_servers import answering

pytest.importorskip("openai")
CONTEXT = 100
# As vLLM (0.9, 0.15, later) and SGLang write them; a token is a character here.
BOTH = (
    "This model's maximum context length is {context} tokens. However, you requested {total} "
    "tokens ({prompt} in the messages, {asked} in the completion)."
)
LESS = (
    "This model's maximum context length is {less} tokens. However, your request has {prompt} "
    "input tokens. (parameter=input_tokens, value={prompt})"
)
LEAST = (
    "You requested {asked} output tokens and your prompt contains at least {least} input tokens. "
    "This model's maximum context length is {context} tokens."
)
SGLANG = (
    "Requested token count exceeds the model's maximum context length of {context} tokens. You "
    "requested a total of {total} tokens: {prompt} tokens from the input messages and {asked} "
    "tokens for the completion."
)
NO_NUMBERS = "the request exceeds the available context size"


def words_for(template, prompt, asked, context=CONTEXT):
    numbers = {"less": context - asked, "least": context - asked + 1, "total": prompt + asked}
    return template.format(prompt=prompt, asked=asked, context=context, **numbers)


@pytest.mark.parametrize(
    ("template", "wrote", "tries"),
    [(BOTH, 60, 2), (SGLANG, 60, 2), (LESS, 50, 4), (LEAST, 50, 4), (NO_NUMBERS, 50, 4)],
)
def test_a_long_prompt_is_answered_shorter_and_one_too_long_with_nothing(template, wrote, tries):
    asked, seeds = [], itertools.count()

    def answer(body):
        if body["prompt"] == "0":
            return 200, {"choices": [{"text": str(next(seeds)), "finish_reason": "stop"}]}
        asked.append(body["max_tokens"])
        prompt, most = len(body["prompt"]), body["max_tokens"]
        if prompt + most > CONTEXT:
            error = {"message": words_for(template, prompt, most), "type": "BadRequestError"}
            return 400, {"error": error}
        usage = {"completion_tokens": most}
        choice = {"text": "x" * most, "finish_reason": "length"}
        return 200, {"choices": [choice], "usage": usage}

    def ask(prompt):
        return Request(key="q", text="1" * prompt, temperature=1.0, max_tokens=400, seed=1)

    with (
        answering(answer) as url,
        closing(ServerEngine(url, settings=ServerSettings(concurrency=1))) as engine,
    ):
        assert engine.fits(ask(1000))
        (long,) = engine.sample([ask(40)])
        assert (long.text, long.finish, long.tokens) == ("x" * wrote, "length", wrote)
        assert len(asked) == tries
        assert engine.notes == {SHORTENED: 1}
        (longer,) = engine.sample([ask(101)])
        assert (longer.key, longer.text, longer.finish, longer.tokens) == ("q", "", "length", 0)
        assert engine.notes == {SHORTENED: 1, TOO_LONG: 1}
        assert asked[-1] == 16


def test_the_users_own_max_tokens_is_shortened_too():
    def answer(body):
        if body["max_tokens"] > 50:
            return 413, "Payload Too Large"
        return 200, {"choices": [{"text": str(body["seed"]), "finish_reason": "stop"}]}

    extra = {"max_tokens": 70}
    request = Request(key="q", text="1", temperature=1.0, max_tokens=5, seed=8)
    with (
        answering(answer) as url,
        closing(ServerEngine(url, settings=ServerSettings(extra_body=extra))) as engine,
    ):
        assert next(engine.sample([request])).text == "8"
        assert engine.notes == {SHORTENED: 1}


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (400, words_for(BOTH, 90, 40), True),
        (400, words_for(SGLANG, 90, 40), True),
        (400, "The input (61709 tokens) is longer than the model's context length (40960).", True),
        (400, "The decoder prompt (length 50) is longer than the maximum model length of 9.", True),
        (413, "Request Entity Too Large", True),
        (500, "Requested tokens (90) exceed context window of 40", True),
        (500, "Internal Server Error", False),
        (400, "top_p must be in (0, 1], got 3.0.", False),
        (400, "max_tokens must be at least 1, got 0.", False),
        (404, "The model `context` does not exist.", False),
        (429, "Too many input tokens this minute: the request is too large.", False),
    ],
)
def test_what_blames_the_length(status, words, expected):
    response = types.SimpleNamespace(text=words)
    error = types.SimpleNamespace(status_code=status, response=response)
    assert is_too_long(error) is expected


def test_numbers_are_believed_where_they_leave_something():
    assert fewer_tokens(words_for(BOTH, 90, 40), 40) == 10
    assert fewer_tokens(words_for(BOTH, 90, 40), 10) is None  # refused all the same
    assert fewer_tokens(words_for(BOTH, 120, 40), 40) == 20
    assert fewer_tokens("The prompt (length 50), model length (90)", 64) == 40
    assert fewer_tokens("", 31) == 16
    assert fewer_tokens("", 16) is None


def test_any_other_refusal_ends_the_build():
    def answer(body):
        if body["prompt"] == "0":
            return 200, {"choices": [{"text": str(body["seed"]), "finish_reason": "stop"}]}
        return 400, {"error": {"message": "top_p must be in (0, 1], got 3.0."}}

    request = Request(key="q/7", text="1", temperature=1.0, max_tokens=9, seed=1)
    with answering(answer) as url:
        secret = url.replace("://", "://me:secret@")
        with closing(ServerEngine(secret)) as engine:
            assert engine.name == f"server: {url}, m"
            with pytest.raises(PrefkitError, match=r"q/7.*top_p") as error:
                list(engine.sample([request]))
    assert "secret" not in str(error.value)
