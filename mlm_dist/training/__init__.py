"""The training job: the loop, its state, optimizers, schedule, resuming and stopping."""
