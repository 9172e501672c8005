"""Waiting for a server that is away, dying, or behind something that is not; and where it is."""

import itertools
import threading
import time

import pytest

from prefkit.errors import ConfigError, PrefkitError
from prefkit.pairs.engines.server.engine import ServerEngine
from prefkit.pairs.engines.server.finding import normal_url, public_url
from prefkit.pairs.engines.server.patience import Patience
from tests.pairs.serving import free_port
from tests.pairs.tiny_servers import Closer, answering

openai = pytest.importorskip("openai")


def post(url):
    """A call of the server at a URL."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=5)
    return lambda: client.post("/completions", cast_to=object, body={"prompt": "?"})


def test_something_that_accepts_and_closes_is_waited_for_with_growing_pauses():
    closer = Closer()
    started = time.monotonic()
    try:
        with pytest.raises(PrefkitError, match="request q in 5 attempts"):
            Patience(closer.url, 4, first_wait=0.05).call("request q", post(closer.url))
    finally:
        closer.close()
    assert time.monotonic() - started > 0.75 * (0.05 + 0.1 + 0.2 + 0.4)
    assert closer.accepted == 5  # nothing but the attempts


def test_a_server_that_starts_is_found_early_but_what_only_accepts_hurries_nobody_twice():
    port, late = free_port(), []
    url = f"http://127.0.0.1:{port}/v1"
    threading.Timer(0.3, lambda: late.append(Closer(port))).start()
    found, send = [], post(url)

    def watched():
        found.append(time.monotonic())
        return send()

    with pytest.raises(PrefkitError, match="in 4 attempts"):
        Patience(url, 3, first_wait=0.4).call("request q", watched)
    late[0].close()
    early, second, third = (b - a for a, b in itertools.pairwise(found))
    assert early < 0.75 * 0.4 + 0.25  # a check every half first pause
    assert second > 0.75 * 0.8
    assert third > 0.75 * 1.6


def test_a_dying_engines_errors_are_waited_out():
    asked = []

    def answer(body):
        asked.append(body)
        return (200, {"choices": []}) if len(asked) > 5 else (500, "Internal Server Error")

    with answering(answer) as url:
        patience = Patience(url, 6, first_wait=0.01)
        assert patience.call("request q", post(url)) == {"choices": []}
        assert len(asked) == 6
        asked.clear()
        with pytest.raises(PrefkitError, match="q every time"), patience.short():
            patience.call("request q", post(url))
        assert len(asked) == 4


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, {"error": {"type": "BadRequestError", "message": "temperature"}}),
        (400, "temperature"),
        (501, "Not Implemented"),
    ],
)
def test_what_blames_the_request_is_not_asked_again(status, words):
    asked = []
    refused = pytest.raises(PrefkitError, match=f"refuses request q .HTTP {status}")
    with answering(lambda body: asked.append(body) or (status, words)) as url, refused:
        Patience(url, 6, first_wait=0.01).call("request q", post(url))
    assert len(asked) == 1


def test_a_server_that_stays_away_is_given_up_and_close_ends_the_waiting():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(PrefkitError, match=r"did not answer request q in 2 attempts"):
        Patience(url, 1, first_wait=0.05).call("request q", post(url))
    patience = Patience(url, 8)
    threading.Timer(0.3, patience.close).start()
    started = time.monotonic()
    with pytest.raises(PrefkitError, match="was ended"):
        patience.call("request q", post(url))
    assert time.monotonic() - started < 5


# -- addresses --------------------------------------------------------------------------------


def test_nobody_there():
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"nobody answers at http://127.0.0.1.*vllm serve") as one:
        ServerEngine(f"http://127.0.0.1:{free_port()}")
    assert "HOST:PORT" not in str(one.value)
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.9/v1 .*http://HOST:PORT"):
        ServerEngine("http://127.0.0.9")  # loopback, where nobody listens on port 80
    assert time.monotonic() - started < 30


def test_urls_as_written_by_hand():
    wrong = ("ftp://host/v1", "http://", "", "http://host:port", "http://host:99999", "http://[::1")
    for url in wrong:
        with pytest.raises(ConfigError, match="no URL"):
            normal_url(url)
    assert normal_url("localhost:8000") == normal_url("http://localhost:8000/v1/")


def test_a_password_in_the_url_is_never_shown():
    written = {
        "http://me:secret@host:8000/v1": "http://host:8000/v1",
        "https://me:se@cret@host/a@b/v1": "https://host/a@b/v1",
        "http://host/v1": "http://host/v1",
        "me:secret@host": "host",
    }
    assert {url: public_url(url) for url in written} == written
    with pytest.raises(ConfigError) as error:
        normal_url("http://me:secret@:port")
    assert "secret" not in str(error.value)
