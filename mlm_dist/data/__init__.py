"""Text on its way to the model: tokens, corpora, the order of rows, masks."""
