"""The token in exchange for a cookie, for browsers."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from lorahydra.service.access import COOKIE, SESSION_SECONDS, Access
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.limits import Allowance

__all__ = ["login_router"]

FAILURES_PER_MINUTE = 10
FORM = (
    '<!doctype html><html lang="en"><title>lorahydra</title><h1>lorahydra</h1>{said}<form method="post" '
    'action="/login"><label>Token of the server <input type="password" name="token" autocomplete="current-password" '
    "required autofocus></label> <button>Log in</button></form></html>"
)
WRONG = "<p>This is not the server's token.</p>"


def login_router(access: Access) -> APIRouter:
    """`POST /login` (form field `token`), `POST /logout`, and a form for those who have no nicer one."""
    router = APIRouter(include_in_schema=False)
    failures = Allowance(FAILURES_PER_MINUTE, "wrong tokens")

    @router.get("/login", response_class=HTMLResponse)
    def form(request: Request) -> str:
        return FORM.format(said=WRONG if "failed" in request.query_params else "")

    @router.post("/login")
    async def login(request: Request) -> Response:
        try:
            if access.token is not None:
                failures.check()  # before the token is looked at: a right guess must not be found either
                if not access.is_token(_token_in(await request.body())):
                    failures.take()
                    raise _WrongTokenError("this is not the server's token")
        except ServiceRefusal:
            if not _wants_page(request):
                raise
            return RedirectResponse("/login?failed=1", status_code=303)
        answer: Response = RedirectResponse("/", 303) if _wants_page(request) else JSONResponse({"status": "ok"})
        answer.set_cookie(
            COOKIE,
            access.new_session(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure="https" in (request.url.scheme, request.headers.get("origin", "").partition(":")[0]),
        )
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        answer: Response = RedirectResponse("/login", 303) if _wants_page(request) else JSONResponse({"status": "ok"})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def _token_in(body: bytes) -> bytes:
    """The token in a form's body; empty where there is none."""
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=5)
    except ValueError:
        return b""
    return fields.get("token", [""])[0].encode("utf-8", "replace")


class _WrongTokenError(ServiceRefusal):
    status, code = 401, "unauthorized"


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
