"""What a server is asked before a build, to learn whether it samples as asked, and what is said."""

from collections.abc import Callable
from dataclasses import replace

from prefkit.errors import ConfigError
from prefkit.pairs.engines.base import Completion, Request

# Warm, and of a text that says nothing.
PROBE = Request(key="probe", text="0", temperature=2.0, max_tokens=16, seed=1)
WITH_STOP = replace(PROBE, stop=("\n\n",))
# What a judge is asked like: greedily, by messages.
CHAT = replace(PROBE, text="", messages=({"role": "user", "content": "0"},), temperature=0.0)
ONE_AT_A_TIME = (
    "is `transformers serve`: one request at a time, because its seeds hold for one only "
    "(--concurrency N: more, not reproducible)."
)
NO_SEEDS = (
    "does not honour seeds: what is sampled is kept, but the same build anywhere else comes to "
    "other pairs."
)


def honours_seeds(complete: Callable[[Request], Completion], url: str) -> bool:
    """Whether the same seed gives the same text twice.

    Raises:
        ConfigError: every seed gives the same text.
    """
    texts = [complete(replace(PROBE, seed=seed)).text for seed in (1, 1, 2)]
    seed = 3
    while len(set(texts)) == 1 and seed < 7:
        texts.append(complete(replace(PROBE, seed=seed)).text)
        seed += 1
    if len(set(texts)) == 1:
        raise ConfigError(
            f"The server {url} writes the same text for every seed at temperature 2: it decodes "
            "greedily. Set do_sample in the model's generation_config.json, or give extra_body "
            "what makes it sample."
        )
    return texts[0] == texts[1]


def refuse_first_settings(complete: Callable[[Request], Completion], url: str) -> None:
    """Refuses a `transformers serve` that keeps the settings of the first request.

    Raises:
        ConfigError: it does.
    """
    cold = [replace(PROBE, seed=seed, temperature=0.0) for seed in (1, 2, 3)]
    if len({complete(request).text for request in cold}) > 1:
        raise ConfigError(
            f"The server {url} samples at temperature 0: it keeps the settings of the first "
            "request. Start `transformers serve` without --continuous-batching."
        )


def takes_stops(send: Callable[[], object]) -> bool:
    """Whether `transformers serve` can stop at a text: with tokenizers that lack some letters it
    fails.

    Args:
        send: sends `WITH_STOP`.
    """
    from openai import InternalServerError

    try:
        send()
    except InternalServerError:
        return False
    return True
