"""A file run in the user's own runner, and what the runner computes told apart from what the model says."""

from bitconv.commands.trial.trial import Trial, Trials, try_runner

__all__ = ["Trial", "Trials", "try_runner"]
