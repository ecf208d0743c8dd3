"""Statistics of paired comparisons over seeds and items: intervals, tests, corrections, equivalence, and who cannot be told apart."""
