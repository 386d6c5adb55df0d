"""The token in exchange for a cookie, for browsers: `POST /login` with the form field `token`, and `POST /logout`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from lorahydra.service.access import COOKIE, SESSION_SECONDS, Access
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.limits import Allowance

__all__ = ["login_router"]

FAILURES_PER_MINUTE = 10


def login_router(access: Access) -> APIRouter:
    """Both routes; the form is a page."""
    router = APIRouter(include_in_schema=False)
    failures = Allowance(FAILURES_PER_MINUTE, "wrong tokens")

    @router.post("/login")
    async def login(request: Request) -> Response:
        try:
            if access.token is not None:
                failures.take(count=False)  # first, so that the answer does not tell a right guess from a wrong one
                given = (await request.form()).get("token")
                if not (isinstance(given, str) and access.is_token(given.encode("utf-8", "replace"))):
                    failures.take()
                    raise ServiceRefusal("this is not the server's token", "unauthorized", 401)
        except ServiceRefusal:
            if not _wants_page(request):
                raise
            return RedirectResponse("/login?failed=1", status_code=303)
        answer = _answer(request, "/")
        is_secure = "https" in (request.url.scheme, request.headers.get("origin", "").partition(":")[0])
        session = access.new_session()
        answer.set_cookie(COOKIE, session, SESSION_SECONDS, httponly=True, samesite="strict", secure=is_secure)
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        answer = _answer(request, "/login")
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def _answer(request: Request, page: str) -> Response:
    return RedirectResponse(page, 303) if _wants_page(request) else JSONResponse({"status": "ok"})


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
