"""A page about a GGUF file: what it is, and why to trust it."""

from bitconv.commands.report.page import Report, report

__all__ = ["Report", "report"]
