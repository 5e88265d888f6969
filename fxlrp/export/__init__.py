"""Traces forward and relevance pass into one graph, which can be compiled and saved."""
