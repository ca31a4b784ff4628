"""Biologically plausible self-supervised learning: any learning rule, any objective, any task, on one command line."""

__version__ = "0.1.0"
