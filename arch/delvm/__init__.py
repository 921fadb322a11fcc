"""delvm."""
