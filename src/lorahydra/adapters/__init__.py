"""Adapters that already exist: finds one by any name, exports it and describes it."""
