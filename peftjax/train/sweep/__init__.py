"""Sweeps: points of a config -> work directories in one folder, trained by whichever launcher is there, and compared."""
