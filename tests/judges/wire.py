"""A loopback server that speaks the judges' wire formats: paths, headers, OAuth, usage fields and faults.

It judges by the text of the prompt alone, so that a prompt gets the same verdict however often and in whichever order
it is asked. What it does instead is planned by `plan(prompt, attempt)`. The fixed answers of the self-test are counted
apart and scored as a good judge would; `plan_of_self_test` says what happens instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.judges.faults import TEXTS, WIRE, fake_verdict

from lorahydra.judges.selftest import TEXTS as SELF_TEST

KEY = "test-key-8d1f0c5e27"
CREDENTIALS = base64.b64encode(b"client-id:client-secret-51c0").decode()
TOKEN = "access-token-93ab77"
MODEL = "judge-model"
ANSWERED = "judge-model-001"
CERTIFICATE = Path(__file__).with_name("loopback_ca.pem")
CERTIFICATE_AND_KEY = Path(__file__).with_name("loopback.pem")
"""Self-signed for 127.0.0.1, made with `openssl req -x509 -newkey ec -nodes -days 36500 …`."""
PROMPT_TOKENS, COMPLETION_TOKENS = 321, 45


@dataclass
class Request:
    """What a judge sent."""

    service: str
    system: str
    user: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def criteria(self) -> list[str]:
        return re.findall(r"^- (\w+): ", self.system, re.MULTILINE)

    @property
    def _self_tested(self) -> tuple[str, ...]:
        return next((texts for texts in SELF_TEST.values() if f"\n{texts[0]}\n" in self.user), ())

    @property
    def is_self_test(self) -> bool:
        """Whether one of the fixed answers is judged."""
        return bool(self._self_tested)

    def verdict(self) -> dict[str, Any]:
        """A verdict that depends on the prompt only."""
        digest = hashlib.sha256(self.user.encode()).digest()
        scores = {name: digest[index] % 6 for index, name in enumerate(self.criteria)}
        if self.is_self_test:
            scores = dict.fromkeys(self.criteria, 5 if self.user.count(self._self_tested[1]) == 2 else 0)
        return {"reasoning": f"Вердикт {digest.hex()[:6]}", "scores": scores}


Plan = Callable[[Request, int], str]


@dataclass
class JudgeServer:
    """Counts and answers; `url` is its address."""

    plan: Plan = lambda request, attempt: "good"
    delay: float = 0.0
    """Seconds before each reply."""
    url: str = ""
    key: str = KEY
    """The key that is right."""
    plan_of_self_test: Plan = lambda request, attempt: "good"
    plan_of_oauth: Callable[[int], str] = lambda attempt: "good"
    answers_as: str = ANSWERED
    """The model that it says it is."""
    token_seconds: float = 1800
    """How long an access token holds."""
    requests: list[Request] = field(default_factory=list)
    self_tests: list[Request] = field(default_factory=list)
    tokens_given: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end, so that replies that hang let go."""

    @property
    def calls(self) -> int:
        """How often answers were judged, the self-test's left out."""
        return len(self.requests)

    @property
    def gemini(self) -> str:
        return self.url

    @property
    def openai(self) -> str:
        return f"{self.url}/openai/v1"

    @property
    def gigachat(self) -> str:
        return f"{self.url}/giga/v1"

    @property
    def oauth(self) -> str:
        return f"{self.url}/api/v2/oauth"


def _text(parts: Any) -> str:
    return "".join(part.get("text", "") for part in parts or [])


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; faults of `tests.judges.faults` use what is public."""

    protocol_version = "HTTP/1.1"
    state: JudgeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        state = self.state
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        if path == "/api/v2/oauth":
            self._oauth(raw.decode(), headers)
            return
        body = json.loads(raw)
        if match := re.fullmatch(r"/v1beta/models/([\w.-]+):generateContent", path):
            system = body.get("systemInstruction") or body.get("system_instruction") or {}
            contents = body["contents"][0]
            request = Request("gemini", _text(system.get("parts")), _text(contents["parts"]), body, headers)
            authorized, model = headers.get("x-goog-api-key") == state.key, match[1]
        elif path in ("/openai/v1/chat/completions", "/giga/v1/chat/completions"):
            service = "openai" if path.startswith("/openai") else "gigachat"
            system, user = (message["content"] for message in body["messages"])
            request = Request(service, system, user, body, headers)
            secret = state.key if service == "openai" else TOKEN
            authorized, model = headers.get("authorization") == f"Bearer {secret}", body["model"]
        else:
            self.send(404, {"error": {"code": 404, "message": f"no path {path}", "status": "NOT_FOUND"}})
            return
        with state.lock:
            (state.self_tests if request.is_self_test else state.requests).append(request)
            state.attempts[request.user] += 1
            attempt = state.attempts[request.user]
        if state.delay:
            time.sleep(state.delay)
        plan = state.plan_of_self_test if request.is_self_test else state.plan
        what = plan(request, attempt)
        if not authorized:
            what = "400 bad key" if request.service == "gemini" else "401"
        elif model != MODEL:
            what = "404"
        self._reply(request, what)

    def do_GET(self) -> None:
        """What a redirect leads to."""
        WIRE["a page"](self, Request("page", "", "", {}, {}))

    def _oauth(self, body: str, headers: dict[str, str]) -> None:
        if headers.get("authorization") != f"Basic {CREDENTIALS}" or "rquid" not in headers:
            self.send(401, {"code": 6, "message": f"credentials doesn't match {headers.get('authorization')}"})
            return
        assert body in ("scope=GIGACHAT_API_PERS", "scope=GIGACHAT_API_CORP")
        with self.state.lock:
            self.state.tokens_given += 1
            what = self.state.plan_of_oauth(self.state.tokens_given)
        if what in WIRE:
            WIRE[what](self, Request("oauth", "", "", {}, headers))
        else:
            expires = int((time.time() + self.state.token_seconds) * 1000)
            self.send(200, {"access_token": TOKEN, "expires_at": expires})

    def _reply(self, request: Request, what: str) -> None:
        good = json.dumps(request.verdict(), ensure_ascii=False)
        texts = {
            "good": good,
            "malformed JSON": good[:-1] + ",,",
            "out of range": good.replace(": {", ': {"extra": 1, ', 1).replace(
                f'"{request.criteria[0]}": ', f'"{request.criteria[0]}": 1', 1
            )
            if request.verdict()["scores"][request.criteria[0]] > 0
            else json.dumps({"reasoning": "", "scores": dict.fromkeys(request.criteria, 7)}),
            "no verdict": "I would rather not say.",
        }
        if what in WIRE:
            WIRE[what](self, request)
        elif what in TEXTS and "fake" in what and fake_verdict(request.criteria) not in request.user:
            # Nobody quotes what he is not shown.
            self.send(200, self.body(request, good))
        elif what in TEXTS:
            self.send(200, self.body(request, TEXTS[what](request.verdict(), good)))
        elif what in texts or what.startswith("says "):
            self.send(200, self.body(request, texts.get(what, what.removeprefix("says "))))
        elif what == "truncated":
            self.send(200, self.body(request, good[: len(good) // 2], end="truncated"))
        elif what == "blocked":
            self.send(200, self.body(request, "", end="blocked"))
        elif what == "empty":
            self.send(200, self.body(request, ""))
        elif what == "not JSON":
            self.send(200, b"<html>a proxy's page</html>")
        elif what == "dropped":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif what == "slow":
            self.state.released.wait(30)
            self.close_connection = True
        elif what == "dripping":
            self._drip()
        else:
            self._error(request, what)

    def _drip(self) -> None:
        """Send a byte now and then, so that no read ever takes long."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.state.released.wait(0.1):
            self.wfile.write(b" ")
            self.wfile.flush()
        self.close_connection = True

    def _error(self, request: Request, what: str) -> None:
        status, _, detail = what.partition(" ")
        code = int(status)
        headers = {"Retry-After": detail.removeprefix("retry after ")} if "retry after" in detail else {}
        said = {400: "API key not valid. Please pass a valid API key."}.get(code, f"error {code}")
        if detail.startswith("refuses "):
            said = f"Invalid request: {detail.removeprefix('refuses ')} is not supported"
        if request.service == "gemini":
            details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
            names = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
            error: dict[str, Any] = {"code": code, "message": said, "status": names.get(code, "INTERNAL")}
            if code == 400 and "refuses" not in detail:
                error["details"] = details
            self.send(code, {"error": error}, headers)
        elif request.service == "openai":
            # OpenAI repeats the key that it refuses.
            text = f"Incorrect API key provided: {request.headers.get('authorization')}" if code == 401 else said
            self.send(code, {"error": {"message": text, "type": "error", "param": None, "code": None}}, headers)
        else:
            self.send(code, {"status": code, "message": said}, headers)

    def body(self, request: Request, text: str, end: str = "") -> dict[str, Any]:
        if request.service == "gemini":
            reason = {"truncated": "MAX_TOKENS", "blocked": "SAFETY"}.get(end, "STOP")
            candidate: dict[str, Any] = {"finishReason": reason, "index": 0}
            if text:
                candidate["content"] = {"role": "model", "parts": [{"text": text}]}
            usage = {
                "promptTokenCount": PROMPT_TOKENS,
                "candidatesTokenCount": COMPLETION_TOKENS,
                "totalTokenCount": PROMPT_TOKENS + COMPLETION_TOKENS,
            }
            return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": self.state.answers_as}
        blocked = "content_filter" if request.service == "openai" else "blacklist"
        reason = {"truncated": "length", "blocked": blocked}.get(end, "stop")
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": self.state.answers_as,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason},
            ],
            "usage": {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": COMPLETION_TOKENS,
                "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
            },
        }

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in {**defaults, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are a part of the tests."""


@contextmanager
def judge_server(
    plan: Plan | None = None, *, self_test: Plan | None = None, delay: float = 0.0, tls: bool = False
) -> Iterator[JudgeServer]:
    """Run a server on a free port of loopback, with `tls` under a certificate that nobody knows."""
    state = JudgeServer(delay=delay)
    if plan is not None:
        state.plan = plan
    if self_test is not None:
        state.plan_of_self_test = self_test
    handler = type("Handler", (Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE_AND_KEY)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
