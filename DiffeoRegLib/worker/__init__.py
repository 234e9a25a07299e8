"""The process that computes for the Slicer module: one JSON line per message, volumes as raw files."""
