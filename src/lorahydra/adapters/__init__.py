"""Adapters that exist already: finding one by any name, exporting it, describing it."""
