"""The encoder and its loss. Nothing here knows of files, data or processes."""
