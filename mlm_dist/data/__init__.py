"""What training reads: tokenizers, corpora, the order of rows, and masking."""
