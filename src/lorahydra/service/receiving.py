"""An upload as browsers and curl send it (multipart/form-data), written to disk while it arrives.

The form parsers of Starlette and python-multipart know a file's name and size only when all of it has come, and keep it
in the system's temporary folder meanwhile. Here it is refused at once, and goes where it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lorahydra.service.errors import InvalidError, ServiceRefusal, TooLargeError, UnsupportedError
from lorahydra.service.uploads import Upload

__all__ = ["FileReceiver"]

FIELD, ENCODING_FIELD = b"file", b"encoding"
MOST_PARTS = 10
MOST_BESIDE = 1 << 16
"""Largest size of the form's other fields in bytes."""


class FileReceiver:
    """Finds the file in a form, and writes it into an upload.

    Args:
        content_type: The request's header.
        begin: Called with the file's name; makes the upload.

    Raises:
        ServiceRefusal: The request is not a form.
    """

    def __init__(self, content_type: str, begin: Callable[[str], Upload]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= 200:
            raise UnsupportedError("send the file as the field 'file' of a form (multipart/form-data)")
        self._begin = begin
        self._upload: Upload | None = None
        self._is_complete = False
        self._field: bytes | None = None
        self._name, self._value, self._disposition, self._encoding = b"", b"", b"", b""
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

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the request.

        Raises:
            ServiceRefusal: They do not belong to a form, or the file is refused.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise ServiceRefusal("the form cannot be read: its boundary or a header is broken", "bad_form") from error

    def end(self) -> tuple[Upload, str | None]:
        """The file, and the encoding that the form names, once all of the request has come.

        Raises:
            ServiceRefusal: The form has no file, or did not arrive completely.
        """
        if self._upload is None:
            raise InvalidError("the form has no file: send it as the field 'file'", "no_file")
        if not self._is_complete:
            raise ServiceRefusal("the form ends before its last boundary", "bad_form")
        return self._upload, self._encoding.decode("utf-8", "replace").strip() or None

    def _part_begins(self) -> None:
        self._field, self._disposition, self._name, self._value = None, b"", b"", b""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ServiceRefusal(f"the form has more than {MOST_PARTS} parts", "bad_form")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name")
        if self._field == FIELD:
            if self._upload is not None:
                raise InvalidError("the form has several fields 'file': send one file at a time", "several_files")
            self._upload = self._begin(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field == FIELD and self._upload is not None:
            self._upload.write(data[start:end])
            return
        self._beside += end - start
        if self._beside > MOST_BESIDE:
            raise TooLargeError(f"the form has more than {MOST_BESIDE} bytes beside its file")
        if self._field == ENCODING_FIELD:
            self._encoding += data[start:end]

    def _form_ends(self) -> None:
        self._is_complete = True
