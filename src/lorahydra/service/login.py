"""The token in exchange for a cookie, for browsers."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from lorahydra.service.access import COOKIE, SESSION_SECONDS, Access
from lorahydra.service.errors import ServiceRefusal, TooManyError
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
        fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=5)
        if access.token is not None and not access.is_token(fields.get("token", [""])[0].encode("utf-8", "replace")):
            try:
                failures.take()
            except TooManyError:
                if not _wants_page(request):
                    raise
            if _wants_page(request):
                return RedirectResponse("/login?failed=1", status_code=303)
            raise _WrongTokenError("this is not the server's token")
        answer: Response = RedirectResponse("/", 303) if _wants_page(request) else JSONResponse({"status": "ok"})
        answer.set_cookie(
            COOKIE,
            access.new_session(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        answer: Response = RedirectResponse("/login", 303) if _wants_page(request) else JSONResponse({"status": "ok"})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


class _WrongTokenError(ServiceRefusal):
    status, code = 401, "unauthorized"


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
