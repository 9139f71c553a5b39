"""Exporting a trained model to the format of Hugging Face transformers."""
