"""The training loop and what it stands on: processes, checkpoints, optimizer, metrics."""
