"""Claims of papers, checked here: what was predicted, what was measured, and what may be said of it."""
