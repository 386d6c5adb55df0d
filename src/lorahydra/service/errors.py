"""What the service refuses, with a code for programs and one line for people."""

from __future__ import annotations

from lorahydra.errors import UserError

__all__ = [
    "ConflictError",
    "InvalidError",
    "Message",
    "NotFoundError",
    "ServiceRefusal",
    "TooLargeError",
    "TooManyError",
    "UnsupportedError",
]


class Message(str):
    """A line in English that also carries its code and its values, so that the page can say it in another language.

    Args:
        text: The line.
        code: The page's message that says the same, without its prefix `said.`.
        values: What that message is filled with.
    """

    code: str
    values: dict[str, str]

    def __new__(cls, text: str, code: str = "", **values: str) -> Message:
        """A string with two more attributes."""
        message = super().__new__(cls, text)
        message.code, message.values = code, values
        return message


class ServiceRefusal(UserError):
    """A request that cannot be fulfilled.

    Args:
        message: One line for people.
        code: One word for programs; that of the class by default.
    """

    status = 400
    """HTTP status that says the same."""
    code = "bad_request"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code


class NotFoundError(ServiceRefusal):
    """Nothing has this id."""

    status, code = 404, "not_found"


class ConflictError(ServiceRefusal):
    """The request does not fit the state that things are in."""

    status, code = 409, "conflict"


class TooLargeError(ServiceRefusal):
    """More bytes were sent than are allowed."""

    status, code = 413, "too_large"


class UnsupportedError(ServiceRefusal):
    """The body has a type that is not accepted here."""

    status, code = 415, "unsupported_media_type"


class InvalidError(ServiceRefusal):
    """A value is not valid."""

    status, code = 422, "invalid"


class TooManyError(ServiceRefusal):
    """There were too many requests in a short time.

    Args:
        message: One line for people.
        wait: Seconds after which it can be tried again.
    """

    status, code = 429, "too_many_requests"

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait
