"""Reads Modelfiles, and renders templates in Go, as strictly as Ollama does; Ollama itself is not needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

COMMANDS = ("FROM", "ADAPTER", "TEMPLATE", "SYSTEM", "PARAMETER")
PARAMETERS = {"temperature": float, "repeat_penalty": float, "stop": str}


@dataclass
class Modelfile:
    """What a Modelfile says."""

    values: dict[str, str] = field(default_factory=dict)
    """By command; each may stand once."""
    parameters: dict[str, list[Any]] = field(default_factory=dict)


def parse(text: str) -> Modelfile:
    """Read a Modelfile; fails on everything that Ollama would not take, and on what lorahydra does not write."""
    file = Modelfile()
    while text:
        command, space, text = text.partition(" ")
        assert space, f"a command without a value: {command!r}"
        assert command in COMMANDS
        name = None
        if command == "PARAMETER":
            name, space, text = text.partition(" ")
            assert space
        value, text = _value(text)
        if name is not None:
            file.parameters.setdefault(name, []).append(PARAMETERS[name](value))
        else:
            assert command not in file.values, f"{command} stands twice"
            file.values[command] = value
    assert "FROM" in file.values
    return file


def _value(text: str) -> tuple[str, str]:
    if text.startswith('"""'):
        # Ollama ends the value at three quotation marks before a space or a line break.
        value, end, rest = re.split(r'("""(?=\s))', text[3:], maxsplit=1)
        assert end
        assert rest.startswith("\n")
        return value, rest[1:]
    value, end, rest = text.partition("\n")
    assert end
    assert value == value.strip()
    assert '"' not in value
    return value, rest


TOKEN = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def render(template: str, messages: Sequence[dict[str, str]]) -> str:
    """A template in Go, of the kind that lorahydra writes, with the values that Ollama gives it."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    parts = TOKEN.split(template)
    tree, rest = _parse(parts, 0)
    assert rest == len(parts)
    return _run(tree, {"system": system, "messages": list(messages)})


def _parse(parts: list[str], place: int) -> tuple[list[Any], int]:
    """Nodes from a place on, up to the action that ends them; texts are at even places, actions at odd ones."""
    nodes: list[Any] = []
    while place < len(parts):
        if place % 2 == 0:
            assert "{{" not in parts[place]
            nodes.append(("text", parts[place]))
        elif parts[place].startswith(("if ", "range ")):
            kind, _, condition = parts[place].partition(" ")
            inside, place = _parse(parts, place + 1)
            otherwise: list[Any] = []
            if parts[place].startswith("else if "):
                raise AssertionError("not written by lorahydra")
            if parts[place] == "else":
                otherwise, place = _parse(parts, place + 1)
            assert parts[place] == "end"
            nodes.append((kind, condition, inside, otherwise))
        elif parts[place] in ("else", "end"):
            return nodes, place
        else:
            nodes.append(("value", parts[place]))
        place += 1
    return nodes, place


def _run(nodes: list[Any], values: dict[str, Any]) -> str:
    text = ""
    for kind, what, *inner in nodes:
        if kind == "text":
            text += what
        elif kind == "value":
            text += {
                "$.System": values["system"],
                "$m.Content": values.get("message", {}).get("content"),
                '"{{"': "{{",
            }[what]
        elif kind == "range":
            assert what == "$i, $m := .Messages"
            for number, message in enumerate(values["messages"]):
                text += _run(inner[0], values | {"message": message, "number": number})
        else:
            text += _run(inner[0] if _holds(what, values) else inner[1], values)
    return text


def _holds(condition: str, values: dict[str, Any]) -> bool:
    last = "eq (len (slice $.Messages $i)) 1"
    if condition == "$.System":
        return bool(values["system"])
    if condition == last:
        return len(values["messages"][values["number"] :]) == 1
    if condition == f"and $.System ({last})":
        return bool(values["system"]) and _holds(last, values)
    role = re.fullmatch(r'eq \$m.Role "(\w+)"', condition)
    assert role, condition
    return bool(values["message"]["role"] == role[1])
