"""Metrics that come with lorahydra: each module has one function of prompts, references and predictions.

It returns a score from 0 to 1 for each prediction; its keyword-only arguments are the settings of `metrics.NAME`. The
module is all that a metric needs.
"""
