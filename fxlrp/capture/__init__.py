"""Capture turns a model and a call into a flat, functional ATen graph."""
