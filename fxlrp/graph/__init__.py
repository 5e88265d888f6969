"""The captured graph: what is known of it, and how it is rewritten into one with a relevance pass."""
