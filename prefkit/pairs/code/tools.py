"""Solutions that use an interpreter: sample to the end of a code block, run it, go on."""

from dataclasses import replace
from typing import Literal

from prefkit.errors import ConfigError
from prefkit.pairs.asking import Asking
from prefkit.pairs.code.blocks import code_of, is_closed, output_block, split_blocks
from prefkit.pairs.code.interpreter import Interpreter
from prefkit.pairs.engines.base import Completion, Request, seed_of

# The line that closes a block, and an output that the model would make up itself.
_STOPS = ("\n```\n", "```output")
CALLS = 4


def continue_with_tools(
    request: Request, interpreter: Interpreter, *, prefix: str = "", calls: int = CALLS
) -> Asking[Completion]:
    """Samples a solution whose code blocks are run as they come.

    Args:
        request: the whole continuation wanted; `max_tokens` holds for all that the model writes.
        interpreter: runs the code.
        prefix: the solution so far, with which `request.text` ends: its code is run before that of
            the continuation.
        calls: most blocks to run; a solution that wants more counts as unfinished ("length").

    Yields:
        One request at a time: keys "KEY/call/0", "KEY/call/1", …, each with its own seed.

    Returns:
        The continuation, outputs included; `tokens` are the model's own.

    Raises:
        ConfigError: a request with stop texts, which would cut code anywhere, or with messages.
    """
    if request.stop or request.messages or not request.text.endswith(prefix):
        raise ConfigError(
            f"Request {request.key}: code is run only in whole solutions, so it may hold no stop "
            "texts and no messages, and its text has to end with the prefix."
        )
    written, tokens = "", 0
    finish: Literal["end", "stop", "length"] = "length"
    ran = 0
    for number in range(2 * calls + 2):  # blocks in other languages are closed and passed by
        if tokens >= request.max_tokens:
            break
        (completion,) = yield [_rest(request, number, written, tokens)]
        written, tokens = written + completion.text, tokens + completion.tokens
        finish = completion.finish
        if finish == "length":
            break
        closing = _closing(prefix + written, stopped=finish == "stop")
        if closing is None:
            break
        written, finish = written + closing, "length"
        blocks = [b for b in split_blocks(prefix + written) if b["type"] == "code"]
        if not _ends_with_code(prefix + written):
            continue
        if ran == calls:
            break
        output = interpreter.run(code_of(blocks[-1]), [code_of(b) for b in blocks[:-1]])
        written, ran = written + output_block(output), ran + 1
    return Completion(key=request.key, text=written, finish=finish, tokens=tokens)


def _rest(request: Request, number: int, written: str, tokens: int) -> Request:
    """A request for what is left of a solution, to the end of its next code block."""
    return replace(
        request,
        key=f"{request.key}/call/{number}",
        text=request.text + written,
        max_tokens=request.max_tokens - tokens,
        stop=_STOPS,
        seed=seed_of(request.seed, f"call/{number}"),
    )


def _closing(solution: str, *, stopped: bool) -> str | None:
    """What closes the block at the solution's end, so that it goes on; None = it has ended."""
    if _ends_with_code(solution):
        closed = is_closed(split_blocks(solution)[-1])
        return "" if solution.endswith("\n") and closed else "\n" if closed else "\n```\n"
    # A fence of another language that is open: an odd number of fence lines.
    fences = sum(line.startswith("```") for line in solution.split("\n"))
    return "\n```\n" if stopped and fences % 2 else None


def _ends_with_code(solution: str) -> bool:
    blocks = split_blocks(solution)
    return bool(blocks) and blocks[-1]["type"] == "code"
