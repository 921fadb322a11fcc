"""quickstarts."""
