"""Capture: a model and a call → a flat, functional ATen graph."""
