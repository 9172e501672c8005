"""Small servers on loopback, in threads: one that accepts and closes, one that answers as told."""

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Closer:
    """Accepts connections and closes them at once, as a load balancer without a server behind it.

    Attributes:
        accepted: how many so far.
    """

    def __init__(self, port: int = 0) -> None:
        self.accepted = 0
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._socket.accept()[0].close()
                self.accepted += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends accept()
        self._socket.close()


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """An OpenAI-like server that lists one model, "m", of vLLM; yields its URL.

    Args:
        answer: from the JSON of a request to the status and the JSON or text of its answer.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = {"object": "list", "data": [{"id": "m", "object": "model"}]}
            listed["data"][0]["owned_by"] = "vllm"
            known = self.path == "/v1/models"
            self._write(200 if known else 404, listed if known else {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._write(*answer(body))

        def _write(self, status: int, found: Any) -> None:
            text = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            kind = "text/plain" if isinstance(found, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *unused: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
