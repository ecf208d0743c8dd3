"""A run: the step and its loop, checkpoints, the metrics log, the progress line and the report."""
