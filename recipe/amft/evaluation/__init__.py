"""Evaluation: k samples per prompt through any environment, records of every sample, intervals (docs/evaluation.md)."""
