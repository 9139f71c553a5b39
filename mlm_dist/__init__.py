"""Pre-train masked language models on your own texts, on one process or many."""

__version__ = "0.1.0"
