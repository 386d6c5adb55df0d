"""An upload as browsers and curl send it (multipart/form-data), written to disk while it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lorahydra.service.errors import InvalidError, ServiceRefusal, TooLargeError

__all__ = ["FileReceiver"]

FIELD = "file"
ENCODING_FIELD = "encoding"
MOST_PARTS = 10
MOST_BESIDE = 1 << 16
"""Bytes of the form's other fields and headers."""


class Sink(Protocol):
    """Where the file's bytes go."""

    def write(self, chunk: bytes) -> None:
        """Add bytes."""


class FileReceiver:
    """Finds the file in a form, and gives its bytes on.

    Args:
        content_type: The request's header.
        begin: Called with the file's name; returns where its bytes go.

    Raises:
        ServiceRefusal: The request is no form (415).
    """

    def __init__(self, content_type: str, begin: Callable[[str], Sink]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= 200:
            raise _NotAFormError(f"send the file as the field '{FIELD}' of a form (multipart/form-data)")
        self.is_complete = False
        """Whether the form's end has come, and a file before it."""
        self._begin = begin
        self._sink: Sink | None = None
        self._in_file = self._in_encoding = False
        self._encoding = b""
        self._name, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._parts = self._beside = 0
        callbacks: Any = {
            "on_part_begin": self._part_begins,
            "on_part_data": self._data,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_end": self._form_ends,
        }
        self._parser = MultipartParser(options[b"boundary"], callbacks)

    @property
    def encoding(self) -> str | None:
        """What the form's field `encoding` says; None where it says nothing."""
        return self._encoding.decode("utf-8", "replace").strip() or None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the request.

        Raises:
            ServiceRefusal: They are no part of a form, or the file is refused.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise ServiceRefusal("the form cannot be read: its boundary or a header is broken", "bad_form") from error

    def require_file(self) -> None:
        """Check that all of a file has come.

        Raises:
            InvalidError: It has not.
        """
        if self._sink is None:
            raise InvalidError(f"the form has no file: send it as the field '{FIELD}'", "no_file")
        if not self.is_complete:
            raise ServiceRefusal("the form ends before its last boundary", "bad_form")

    def _part_begins(self) -> None:
        self._headers, self._name, self._value = {}, b"", b""
        self._in_file = self._in_encoding = False
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ServiceRefusal(f"the form has more than {MOST_PARTS} parts", "bad_form")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count(end - start)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def _header_ends(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._in_encoding = options.get(b"name") == ENCODING_FIELD.encode()
        if options.get(b"name") != FIELD.encode():
            return
        if self._sink is not None:
            raise InvalidError(f"the form has several fields '{FIELD}': send one file at a time", "several_files")
        self._sink = self._begin(options.get(b"filename", b"").decode("utf-8", "replace"))
        self._in_file = True

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file and self._sink is not None:
            self._sink.write(data[start:end])
        else:
            self._count(end - start)
            if self._in_encoding:
                self._encoding += data[start:end]

    def _form_ends(self) -> None:
        self.is_complete = True

    def _count(self, size: int) -> None:
        self._beside += size
        if self._beside > MOST_BESIDE:
            raise TooLargeError(f"the form has more than {MOST_BESIDE} bytes beside its file")


class _NotAFormError(ServiceRefusal):
    status, code = 415, "unsupported_media_type"
