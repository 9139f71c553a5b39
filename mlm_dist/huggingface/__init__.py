"""Exporting a trained model to the format of Hugging Face transformers, and reading it back."""
