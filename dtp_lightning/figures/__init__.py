"""Figures of one run, as PNG."""
