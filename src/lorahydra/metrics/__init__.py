"""Scores that need no judge."""
