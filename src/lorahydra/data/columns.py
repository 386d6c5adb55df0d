"""Detects which scheme the columns of a source follow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lorahydra.data.layouts import Layout
from lorahydra.data.preferences import pair_layout
from lorahydra.data.schemes import PREFERENCE, SCHEMES, Scheme
from lorahydra.errors import DataError, one_line

__all__ = ["detect", "detect_prompts"]


def detect(
    columns: Collection[str], wanted: str, mapping: Mapping[str, str], source: str, *, several: bool = False
) -> Layout:
    """Choose the scheme that fits the columns of a source; pairs of answers only where nothing else fits.

    Args:
        columns: The source's columns.
        wanted: `data.format`: a scheme's name, or `auto`.
        mapping: `data.columns`: scheme column → column of the source.
        source: Name of the source in errors.
        several: There are other sources, of other schemes perhaps: each scheme takes its own part of the mapping.

    Raises:
        DataError: No scheme fits, or more than one.
    """
    known = {**SCHEMES, PREFERENCE.name: PREFERENCE}
    schemes = list(known.values()) if wanted == "auto" else [known[wanted]]
    layouts = [
        _layout(scheme, {name: column for name, column in mapping.items() if name in scheme.names}, columns)
        for scheme in schemes
        if several or set(mapping) <= set(scheme.names)
    ]
    if not layouts:
        allowed = "; ".join(f"{scheme.name}: {', '.join(scheme.names)}" for scheme in schemes)
        raise DataError(f"data.columns maps columns of different schemes: {', '.join(mapping)} (columns of {allowed})")
    fitting = [layout for layout in layouts if all(layout.column(name) in columns for name in layout.scheme.required)]
    fitting = [layout for layout in fitting if layout.scheme is not PREFERENCE] or fitting
    if len(fitting) == 1:
        return fitting[0]
    present = one_line(", ".join(sorted(columns))) or "none"
    if fitting:
        names = " and ".join(layout.scheme.name for layout in fitting)
        raise DataError(f"{names} both fit the columns {present}: set data.format to one of them", path=source)
    if schemes == [PREFERENCE]:
        raise DataError(
            f"holds no pairs of answers, which training.method=dpo needs (columns: {present}): "
            "name their columns chosen and rejected, or give data.columns.chosen and data.columns.rejected",
            path=source,
        )
    raise DataError(f"no column scheme fits the columns found ({present}): {_needs(layouts, columns)}", path=source)


def detect_prompts(columns: Collection[str], source: str) -> Layout:
    """Choose the scheme whose prompts a source has, with answers beside them or without; raises like `detect`."""
    whole = [scheme for scheme in SCHEMES.values() if set(scheme.required) <= set(columns)]
    fitting = whole or [scheme for scheme in SCHEMES.values() if scheme.required[0] in columns]
    if len(fitting) == 1:
        return Layout(fitting[0], {})
    present = one_line(", ".join(sorted(columns))) or "none"
    if fitting:
        names = " and ".join(scheme.required[0] for scheme in fitting)
        raise DataError(f"{names} could all be the prompts: keep one of them (columns: {present})", path=source)
    wanted = " or ".join(scheme.required[0] for scheme in SCHEMES.values())
    raise DataError(
        f"none of the columns found ({present}) holds prompts: rename the one that does to {wanted}", path=source
    )


def _layout(scheme: Scheme, mapping: dict[str, str], columns: Collection[str]) -> Layout:
    return pair_layout(mapping, columns) if scheme is PREFERENCE else Layout(scheme, mapping)


def _needs(layouts: Iterable[Layout], columns: Collection[str]) -> str:
    """What would have been accepted; a mapping is proposed where only upper and lower case differ."""
    schemes = [" + ".join(layout.column(name) for name in layout.scheme.required) for layout in layouts]
    text = f"expected {' or '.join(schemes)}; map other names with data.columns"
    by_lower = {column.lower(): column for column in columns}
    for layout in layouts:
        close = {name: by_lower.get(layout.column(name).lower()) for name in layout.scheme.required}
        if all(close.values()):
            return f"{text}, here {' '.join(f'data.columns.{name}={column}' for name, column in close.items())}"
    return f"{text}, for example data.columns.question=q"
