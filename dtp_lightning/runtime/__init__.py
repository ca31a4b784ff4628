"""The process that a run lives in: signals, devices, collectives, memory."""
