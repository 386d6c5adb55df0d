"""Codes of what is said in English, with its values, so that programs need not read the sentences.

```python
reason_of("judge gemini is unavailable: no connection")    # Reason("judge.unavailable", {"judge": "gemini", …})
```
The codes are the keys of the pages' messages, `said.CODE`, so that whatever the pages can say in another language has
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse

from lorahydra.service.errors import Message, ServiceRefusal, json_answer
from lorahydra.service.sayings import DEPTH, KIND, POSSIBLE, PREFIX, REQUIRED, messages, sayings
from lorahydra.service.views import Reason

__all__ = ["coded", "reason_of", "refusal_answer"]


def reason_of(line: str, depth: int = DEPTH) -> Reason | None:
    """What a line says; None if it is not known. A value that is a line itself has its reason as well."""
    if isinstance(line, Message) and line.code:
        return Reason(line.code, line.values)
    line = KIND.sub("", line)
    for saying in sayings(messages("en")) if depth else ():
        values = saying.match(line)
        if values is None:
            continue
        within = {name: reason_of(values[name], depth - 1) for name in (REQUIRED, POSSIBLE) if name in values}
        if within.get(REQUIRED, saying) is None:
            continue
        known = {name: reason for name, reason in within.items() if reason is not None}
        return Reason(saying.key.removeprefix(PREFIX), {**values, **known})
    return None


def refusal_answer(refusal: ServiceRefusal, path: str) -> JSONResponse:
    """The API's response to a request for this path that was refused."""
    reason = reason_of(refusal.detail)
    more = {
        "reason": None if reason is None else asdict(reason),
        "report": None if refusal.report is None else coded(refusal.report),
        "offer": refusal.offer,
    }
    known = {name: value for name, value in more.items() if value is not None}
    return json_answer(path, refusal.status_code, refusal.detail, refusal.code, refusal.headers, **known)


def coded(report: Mapping[str, Any]) -> dict[str, Any]:
    """A data report whose problems have `code` and `params`, and `warning_reasons` beside its warnings."""
    known = dict(report)
    if "problems" in known:
        known["problems"] = [{**problem, **_facts(problem["message"])} for problem in known["problems"]]
    if "warnings" in known:
        known["warning_reasons"] = [_facts(warning) for warning in known["warnings"]]
    return known


def _facts(line: str) -> dict[str, Any]:
    reason = reason_of(line)
    return {"code": None, "params": {}} if reason is None else {"code": reason.code, "params": reason.params}
