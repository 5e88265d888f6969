"""Forward and relevance pass as one graph: traced, compiled, saved."""
