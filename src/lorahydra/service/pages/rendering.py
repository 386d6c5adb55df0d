"""Templates, and what all of them use: messages in the reader's language, addresses, static files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import URL
from starlette.staticfiles import StaticFiles

from lorahydra.service.pages.shapes import Shapes
from lorahydra.service.pages.words import LANGUAGES, Words, chosen_language

__all__ = ["STATIC_PATH", "Static", "error_page", "go", "is_fragment", "render", "words_of"]

LANGUAGE_COOKIE = "lorahydra_language"
YEAR = 365 * 24 * 3600
STATIC_PATH = "/static"
STATIC_FOLDER = Path(__file__).with_name("static")


class Static(StaticFiles):
    """Stylesheets, scripts and pictures, whose addresses have their digest, so that browsers may keep them."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC_FOLDER)

    def file_response(self, *args: Any, **options: Any) -> Response:
        """The answer for a file."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable"
        return response


@cache
def _static(name: str) -> str:
    digest = hashlib.sha256((STATIC_FOLDER / name).read_bytes()).hexdigest()[:12]
    return f"{STATIC_PATH}/{name}?v={digest}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lorahydra.service.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def words_of(request: Request) -> Words:
    """Messages in the reader's language: the one just chosen, chosen earlier, or preferred by the browser."""
    if (chosen := request.query_params.get("lang")) in LANGUAGES:
        return Words(chosen)
    accepted = request.headers.get("accept-language")
    return Words(chosen_language(request.cookies.get(LANGUAGE_COOKIE), accepted))


def is_fragment(request: Request) -> bool:
    """Whether only a part of a page is asked for, to replace that part of the page that is shown."""
    return request.headers.get("hx-request") == "true"


def render(
    request: Request,
    template: str,
    values: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page or a part of one, in the language of the request."""
    words = words_of(request)
    # A page that answers a form has no address that could be opened again.
    here = request.url if request.method == "GET" else URL("/")
    common = {
        "t": words,
        "f": Shapes(words),
        "languages": {code: (name, _here(here, code)) for code, name in LANGUAGES.items()},
        "static": _static,
        "most_bytes": request.app.state.service.config.upload_limit,
        # Only those who had to log in can log out.
        "may_log_out": request.app.state.access.token is not None,
    }
    text = _environment().get_template(template).render({**common, **values})
    # Pages show the present state and differ by language; `Vary` also separates parts from whole pages.
    fixed = {
        "Cache-Control": "no-store",
        "Vary": "Accept-Language, Cookie, HX-Request",
        "Content-Language": words.language,
    }
    response = HTMLResponse(text, status, {**fixed, **(headers or {})})
    if request.query_params.get("lang") in LANGUAGES:
        response.set_cookie(LANGUAGE_COOKIE, words.language, max_age=YEAR, httponly=True, samesite="lax")
    return response


def error_page(
    request: Request, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """A page that says what was refused and what can be done, and leads back; `detail` is the service's one line."""
    words = words_of(request)
    kind = status if f"error.{status}" in words else 503
    values = {"title": words(f"error.{kind}"), "hint": words(f"error.{kind}.hint"), "detail": detail}
    return render(request, "message.html", values, status, headers)


def go(request: Request, path: str) -> Response:
    """Send the browser to another page of this server, after a form."""
    if is_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": path, "Cache-Control": "no-store"})
    return RedirectResponse(path, 303)


def _here(page: URL, language: str) -> str:
    address = page.include_query_params(lang=language)
    # Two slashes at the beginning would name another host.
    return f"/{address.path.lstrip('/')}?{address.query}"
