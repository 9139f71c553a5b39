"""Using a trained model: filling masks, generating, scoring and embedding texts."""
