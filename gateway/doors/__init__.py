"""The wires: each door translates its own to work, and an answer back, and does nothing else."""
