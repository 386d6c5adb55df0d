"""A model hub that gives no answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def silent_hub(*, hangs: bool = False) -> Iterator[tuple[str, list[str]]]:
    """A server that gives no answer: its address, and a list to which each request is added.

    Args:
        hangs: It keeps connections open, instead of closing them.
    """
    requests: list[str] = []
    over = threading.Event()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if hangs:
                over.wait()
            self.close_connection = True

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
