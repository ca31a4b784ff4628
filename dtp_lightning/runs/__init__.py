"""Everything that a run leaves on disk: folder, checkpoints, summary, status."""
