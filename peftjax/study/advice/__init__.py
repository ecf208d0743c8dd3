"""Advice: which method fits somebody's demands, by rules with their sources, costs measured here, and quality in stored studies."""
