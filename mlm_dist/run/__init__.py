"""The run directory: checkpoints, metrics, record, lock, and trackers."""
