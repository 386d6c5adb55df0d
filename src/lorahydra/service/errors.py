"""What the service refuses, with a code for programs and one line for people."""

from __future__ import annotations

from lorahydra.errors import UserError

__all__ = [
    "ConflictError",
    "InvalidError",
    "NotFoundError",
    "ServiceRefusal",
    "TooLargeError",
    "TooManyError",
]


class ServiceRefusal(UserError):
    """A request that cannot be fulfilled.

    Args:
        message: One line for people.
        code: One word for programs; the class's by default.
    """

    status = 400
    """HTTP status that says the same."""
    code = "bad_request"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code


class NotFoundError(ServiceRefusal):
    """Nothing has this id."""

    status, code = 404, "not_found"


class ConflictError(ServiceRefusal):
    """It does not go with the state that things are in."""

    status, code = 409, "conflict"


class TooLargeError(ServiceRefusal):
    """More bytes than are allowed."""

    status, code = 413, "too_large"


class InvalidError(ServiceRefusal):
    """A value cannot be."""

    status, code = 422, "invalid"


class TooManyError(ServiceRefusal):
    """Too many requests in a short time.

    Args:
        message: One line for people.
        wait: Seconds after which it can be tried again.
    """

    status, code = 429, "too_many_requests"

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait
