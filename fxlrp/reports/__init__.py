"""Reports: what became of each node, and how much relevance passes it."""
