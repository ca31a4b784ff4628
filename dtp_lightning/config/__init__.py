"""Configuration: from keys to objects, and one clear line for what does not fit."""
