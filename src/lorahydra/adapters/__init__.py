"""Adapters that exist: found by any name, exported, described."""
