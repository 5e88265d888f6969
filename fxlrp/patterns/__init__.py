"""Graph passes that canonicalize the many ways to write a model into the few forms that have rules."""
