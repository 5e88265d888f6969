"""The engine: ops whose backward pass is a rule, and the seeds of the relevance pass."""
