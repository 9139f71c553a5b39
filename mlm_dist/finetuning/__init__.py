"""Learning a labelled task with a trained model, and comparing it with baselines."""
