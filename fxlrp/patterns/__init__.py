"""Patterns: graph passes that bring what models write in many ways into the few forms the rules speak of."""
