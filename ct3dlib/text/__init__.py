"""Reports and what they mention."""
