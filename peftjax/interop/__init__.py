"""Bases, tokenizers and checkpoints of other tools: read, checked, and turned into one parameter tree."""
