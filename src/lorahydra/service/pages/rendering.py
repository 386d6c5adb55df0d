"""Templates, and what all of them use: messages in the reader's language, addresses, static files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import URL

from lorahydra.service.pages.shapes import Shapes
from lorahydra.service.pages.words import LANGUAGES, Words, chosen_language

__all__ = ["LANGUAGE_COOKIE", "STATIC_FILES", "is_fragment", "render", "static_file", "words_of"]

LANGUAGE_COOKIE = "lorahydra_language"
YEAR = 365 * 24 * 3600
STATIC_FILES = {
    "app.css": "text/css",
    "app.js": "text/javascript",
    "htmx.min.js": "text/javascript",
    "htmx.LICENSE.txt": "text/plain",
    "icon.svg": "image/svg+xml",
}
"""The files of the folder `static` that are served, and their types."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lorahydra.service.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def static_file(name: str) -> tuple[bytes, str]:
    """A static file's content, and a short digest of it.

    Raises:
        KeyError: There is no static file of this name.
    """
    if name not in STATIC_FILES:
        raise KeyError(name)
    content = (resources.files("lorahydra.service.pages") / "static" / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


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
    """A page or a part of one.

    Args:
        request: Tells the language and the address.
        template: File of the template.
        values: What the template shows.
        status: HTTP status.
        headers: Further headers.
    """
    words = words_of(request)
    # A page that answers a form has no address that could be opened again.
    here = request.url if request.method == "GET" else URL("/")
    common = {
        "t": words,
        "f": Shapes(words, datetime.now(UTC)),
        "languages": {code: (name, _here(here, code)) for code, name in LANGUAGES.items()},
        "static": lambda name: f"/static/{name}?v={static_file(name)[1]}",
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


def _here(page: URL, language: str) -> str:
    address = page.include_query_params(lang=language)
    return f"{address.path}?{address.query}"
