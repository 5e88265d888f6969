"""The engine: ops replaced by ones whose backward pass is a rule, seeds, and the pass from output to inputs."""
