"""Reports the treatment of each node, and how much relevance passes through it."""
