"""The encoder and its loss. Nothing here depends on files, data or processes."""
