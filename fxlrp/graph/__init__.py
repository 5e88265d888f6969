"""Analyses a captured graph and rewrites it into one with a relevance pass."""
