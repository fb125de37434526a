"""A page about a GGUF file: what it is, and why to trust it."""

from bitconv.commands.reporting.page import Report, report

__all__ = ["Report", "report"]
