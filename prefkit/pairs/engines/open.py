"""The engines of a build from its options: who samples, who judges, and how prompts are written."""

from typing import Any

from prefkit.data.pair import Front
from prefkit.data.text.render import Renderer
from prefkit.pairs.engines.base import Engine
from prefkit.pairs.engines.connect import connect
from prefkit.pairs.engines.local_model import load_tokenizer
from prefkit.pairs.pipelines.context import tokenize_options
from prefkit.pairs.run.fields import BuildFields
from prefkit.pairs.run.questions import Questions


def open_renderer(options: BuildFields, questions: Questions) -> Renderer | None:
    """What writes prompts; None where plain text goes to a server, which needs no tokenizer here.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    plain = options.string_prompts == "raw" and all(isinstance(q.prompt, str) for q in questions)
    if options.server and plain and options.tokenizer is None:
        return None
    return Renderer(load_tokenizer(options.tokenizer or options.model), tokenize_options(options))


def open_engines(options: BuildFields, renderer: Renderer | None) -> dict[str, Engine]:
    """By role: who samples, and who judges where that is somebody else.

    Raises:
        ConfigError: a model that cannot be loaded, a server that is not there.
    """
    settings = _settings(options)
    engines = {
        "model": connect(
            options.model,
            server=options.server,
            server_model=options.server_model or (options.model if options.server else None),
            tokenizer=options.tokenizer,
            end_ids=_end_of_turn(options, renderer),
            **settings,
        )
    }
    engines["judge"] = engines["model"]
    if options.judge_server or options.judge_model:
        engines["judge"] = connect(
            options.judge_model or options.model,
            server=options.judge_server,
            server_model=options.judge_model,
            judges=True,
            **settings,
        )
    return engines


def _end_of_turn(options: BuildFields, renderer: Renderer | None) -> tuple[int, ...]:
    """What ends a solution under a chat template given as an option, and may be no EOS."""
    if renderer is None or options.chat_template is None:
        return ()
    front = Front(prompt="?", prefix="", append_eos=True, source="chat_template", row=0)
    return (renderer.end_id(front, is_chat=True),)


def _settings(options: BuildFields) -> dict[str, Any]:
    return {
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "concurrency": options.concurrency,
        "timeout": options.timeout,
        "retries": options.retries,
        "extra_body": options.extra_body,
    }
