"""Runs a model's code: the child's side of `PythonInterpreter`, started as a script of its own.

It reads one JSON object from standard input ({"code", "before", "seconds", "memory"}), limits
itself, runs the earlier code silently and the code aloud. It imports nothing of prefkit.
"""

import ast
import contextlib
import io
import json
import linecache
import os
import resource
import sys
import traceback
from typing import Any

# Audit events (https://docs.python.org/3/library/audit_events.html) of what a calculation does not
# do and an accident might: other processes, the network, other people's files.
_REFUSED = (
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "os.spawn"),
    *("subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "signal.pthread_kill"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg"),
    *("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink"),
    *("os.truncate", "shutil.rmtree"),
)
_OPENS = ("open", "os.listdir", "os.scandir", "os.chdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(seconds: float, memory: int) -> None:
    """Sets this process's limits: CPU seconds, bytes of address space, of files, processes."""
    whole = max(1, round(seconds))
    for name, value in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 64),  # threads; the superuser is not held by it, the audit is
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        more = value + (name == resource.RLIMIT_CPU)  # SIGXCPU first, which tells why
        with contextlib.suppress(ValueError, OSError):  # systems that lack one of them
            resource.setrlimit(name, (value, hard if hard == value else more))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: refuses what is listed above, /proc, and writing outside the working folder.

    In /proc stand the environments of the user's other processes, with the keys of servers.
    """
    if event in _REFUSED:
        raise PermissionError(f"{event} is not allowed here")
    if event not in _OPENS or arguments[0] is None or isinstance(arguments[0], int):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if (path + os.sep).startswith("/proc/"):
        raise PermissionError(f"reading {arguments[0]!r} is not allowed here")
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if writes and not path.startswith(_FOLDER):
        raise PermissionError(f"writing {arguments[0]!r} is not allowed here")


def run(code: str, names: dict[str, Any], number: int) -> None:
    """Executes a block; a last line that is an expression is shown, as notebooks do.

    An exception prints its traceback, of which only the blocks' own lines are shown.
    """
    file = f"<block {number}>"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    try:
        tree = ast.parse(code, file)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, file, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, "eval"), names)
            if value is not None:
                print(repr(value))
    except SystemExit:
        pass
    except BaseException as error:
        told = traceback.TracebackException.from_exception(error)
        told.__cause__ = told.__context__ = None
        own = [frame for frame in told.stack if frame.filename.startswith("<block ")]
        told.stack = traceback.StackSummary.from_list(own)  # no paths of this machine in the text
        sys.stdout.write("".join(told.format()))


def main() -> None:
    """One job from standard input."""
    job = json.loads(sys.stdin.buffer.read())
    sys.stdin = io.StringIO()
    limit(job["seconds"], job["memory"])
    sys.addaudithook(refuse)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(job["before"], 1):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run(code, names, number)
    run(job["code"], names, len(job["before"]) + 1)
    sys.stdout.flush()
    os._exit(0)  # whatever threads or exit handlers the code has left behind


_FOLDER = os.path.realpath(os.getcwd()) + os.sep

if __name__ == "__main__":
    main()
