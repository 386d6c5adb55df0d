"""What a failure of the store means in words, and whether it helps to try again."""

from __future__ import annotations

import re
import socket
import ssl

from lorahydra.errors import LorahydraError, StoreUnavailableError, TrackingError, causes, one_line
from lorahydra.utils import databases

__all__ = ["describe", "is_passing", "is_refusal", "is_unknown_to_the_store", "store_fault"]

REFUSALS = (400, 413, 414, 422)
BUSY = (408, 429)
"""HTTP statuses of a server that asks to be called again."""
ANSWERED = "API request to"
"""Part of MLflow's text for an answer that did not come from an MLflow server but, for example, from a proxy."""


def is_refusal(error: Exception) -> bool:
    """Whether the store will never take this item, while others may pass.

    MLflow reports a deleted run with the same code, but then no item would pass: that is not a refusal.
    """
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        return error.response.status_code in REFUSALS  # artifacts: too large, or a name that the server forbids
    return (
        isinstance(error, MlflowException)
        and error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
        and "'active' state" not in str(error)
    )


def is_unknown_to_the_store(error: Exception) -> bool:
    """Whether the store, an older server, does not have such a thing at all."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, NotImplementedError):
        return True
    return isinstance(error, MlflowException) and (
        error.error_code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED") or error.get_http_status_code() == 501
    )


def is_passing(error: BaseException) -> bool:
    """Whether the store may work again without help: it is down, restarts, is overloaded, or is locked."""
    import requests
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy import exc

    chain = list(causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain):
        return False
    for cause in chain:
        if type(cause).__module__ == "sqlite3":
            return "locked" in str(cause) or "busy" in str(cause)
    for cause in chain:
        if isinstance(cause, requests.exceptions.HTTPError) and cause.response is not None:
            return cause.response.status_code in BUSY or cause.response.status_code >= 500
        if isinstance(
            cause, ConnectionError | TimeoutError | socket.gaierror | exc.OperationalError | exc.InterfaceError
        ):
            return True
        if re.search("Connect|Timeout", type(cause).__name__):  # of the SDKs of artifact stores
            return True
        # Faults of MLflow's client have the same code as those of a server.
        if isinstance(cause, RestException) or (isinstance(cause, MlflowException) and ANSWERED in str(cause)):
            return cause.get_http_status_code() in BUSY or cause.get_http_status_code() >= 500
    return False


def store_fault(message: str, error: BaseException) -> TrackingError:
    """The error for a failure of a store: what cannot be used, and the cause in words."""
    kind = StoreUnavailableError if is_passing(error) else TrackingError
    return kind(f"{message}: {describe(error)}")


def describe(error: BaseException) -> str:
    """The cause of `error` in a few words."""
    import requests
    import urllib3

    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there (connection refused)"
        if isinstance(cause, socket.gaierror):
            return "its host name is unknown"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}): name that of its authority in "
                "MLFLOW_TRACKING_SERVER_CERT_PATH"
            )
        if isinstance(cause, requests.exceptions.Timeout | TimeoutError):
            return "no answer in time"
        if isinstance(cause, urllib3.exceptions.ResponseError):
            return f"the server failed ({cause})"
        if isinstance(cause, LorahydraError):
            return str(cause)
        if databases.is_driver_error(cause):
            return databases.describe(cause)
    return one_line(chain[-1] if isinstance(chain[-1], OSError) else error)
