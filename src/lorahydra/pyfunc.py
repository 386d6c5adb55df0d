"""The loader under the name by which models saved by earlier versions call it; see `lorahydra.inference.pyfunc`."""

from __future__ import annotations

from lorahydra.inference.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
