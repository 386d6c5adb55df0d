"""Answers of a saved adapter, from Python and through MLflow."""
