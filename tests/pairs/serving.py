"""A real `transformers serve` process on loopback, which tests start, kill and start again."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

# Runs the installed transformers' command line whatever PATH holds.
_SERVE = "from transformers.cli.transformers import main; main()"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Served:
    """One model served on one port, in a process that can be killed and started again.

    Args:
        model: folder.
        log: file for what the server writes.

    Attributes:
        url: for an OpenAI client.
    """

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self.log, self.port = model, log, free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._process: subprocess.Popen | None = None

    def start(self, wait: float = 90.0) -> None:
        """Starts the process and waits until it answers; fails after `wait` seconds."""
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, "serve", str(self.model), *address],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        if wait:
            self.wait(wait)

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(f"{self.url[:-3]}/health", timeout=2).status == 200:
                    return
            if self._process is not None and self._process.poll() is not None:
                break
            time.sleep(0.2)
        self.kill()
        raise AssertionError(f"no server after {seconds} s:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=20)
            self._process = None


@contextlib.contextmanager
def serving(model: Path, folder: Path) -> Iterator[Served]:
    """A server of the model until the block ends."""
    served = Served(model, folder / "server.log")
    try:
        served.start()
        yield served
    finally:
        served.kill()
