"""Explanations: which pixels speak for and against a class."""
