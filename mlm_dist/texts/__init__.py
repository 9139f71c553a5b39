"""Reads texts: documents in many formats, and the labelled texts and pairs that models are tested on."""
