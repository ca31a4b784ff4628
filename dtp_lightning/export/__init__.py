"""Encoders as files that anyone can load."""
