"""A proxy before an MLflow server, whose network fails in a chosen way."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("dropped", "answer lost", "503", "late")
"""The request does not arrive, the server's answer does not arrive, an error instead of an answer, or an answer after
`SECONDS_LATE`, when the server has done what it was asked for."""
SECONDS_LATE = 2.0


class FaultyProxy:
    """Passes requests on to a server, except that the first request of each kind fails.

    Args:
        port: The server's.
        fault: One of `FAULTS`.
    """

    def __init__(self, port: int, fault: str) -> None:
        self.failed: list[str] = []
        """The kinds of request that failed: method and path, without ids."""
        proxy, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = f"{self.command} {_kind(self.path)}"
                with lock:
                    fails = kind not in proxy.failed
                    proxy.failed += [kind] if fails else []
                if fails and fault == "dropped":
                    self._hang_up()
                elif fails and fault == "503":
                    self._answer(503, {}, b"failed")
                else:
                    answer = self._ask(body)
                    if fails and fault == "late":
                        time.sleep(SECONDS_LATE)
                    if fails and fault == "answer lost":
                        self._hang_up()
                    else:
                        with contextlib.suppress(OSError):
                            self._answer(*answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

            def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                server = http.client.HTTPConnection("127.0.0.1", port)
                headers = {name: text for name, text in self.headers.items() if name not in ("Host", "Connection")}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
                server.close()
                return answer.status, {"Content-Type": answer.headers.get("Content-Type", "")}, content

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, text in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content)

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.close()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def _kind(path: str) -> str:
    """The path without a query, and artifacts without their names."""
    path = path.partition("?")[0]
    return path[: path.index("/artifacts/")] if "/mlflow-artifacts/artifacts/" in path else path
