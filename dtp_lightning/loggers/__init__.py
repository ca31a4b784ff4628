"""Experiment trackers: metrics.csv, W&B, TensorBoard."""
