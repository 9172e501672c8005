"""The engines of a build from its options: who samples, who judges, and how prompts are written."""

from prefkit.data.pair import Front
from prefkit.data.text.render import Renderer
from prefkit.pairs.engines.base import Engine
from prefkit.pairs.engines.local.loading import load_tokenizer
from prefkit.pairs.engines.server.finding import ServerSettings
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.pipelines.context import tokenize_options
from prefkit.pairs.questions import Questions


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
    engines = {"model": _open_model(options, renderer)}
    engines["judge"] = engines["model"]
    if options.judge_server or options.judge_model:
        engines["judge"] = _open_judge(options)
    return engines


def _open_model(options: BuildFields, renderer: Renderer | None) -> Engine:
    if options.server is None:
        from prefkit.pairs.engines.local.engine import LocalEngine

        return LocalEngine(
            options.model,
            tokenizer=options.tokenizer,
            dtype=options.dtype,
            batch_size=options.batch_size,
            end_ids=_end_of_turn(options, renderer),
        )
    from prefkit.pairs.engines.server.engine import ServerEngine

    return ServerEngine(
        options.server,
        options.server_model or options.model,
        _settings(options),
        tokenizer=options.tokenizer or options.model,
    )


def _open_judge(options: BuildFields) -> Engine:
    name = options.judge_model or options.model
    if options.judge_server is None:
        from prefkit.pairs.engines.local.engine import LocalEngine

        return LocalEngine(name, dtype=options.dtype, batch_size=options.batch_size)
    from prefkit.pairs.engines.server.engine import ServerEngine

    return ServerEngine(
        options.judge_server, options.judge_model, _settings(options), tokenizer=name, judges=True
    )


def _end_of_turn(options: BuildFields, renderer: Renderer | None) -> tuple[int, ...]:
    """What ends a solution under a chat template given as an option, and may be no EOS."""
    if renderer is None or options.chat_template is None:
        return ()
    front = Front(prompt="?", prefix="", append_eos=True, source="chat_template", row=0)
    return (renderer.end_id(front, is_chat=True),)


def _settings(options: BuildFields) -> ServerSettings:
    return ServerSettings(
        concurrency=options.concurrency,
        timeout=options.timeout,
        retries=options.retries,
        extra_body=options.extra_body or {},  # type: ignore[arg-type]
    )
