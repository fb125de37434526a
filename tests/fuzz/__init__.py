"""Mutated files: what reads them answers, or refuses them by a BitconvError, and does nothing else."""
