"""Pure functions from a finished episode to numbers."""
