"""The data pipeline: tokenizers, corpora, the order of rows, and masking."""
