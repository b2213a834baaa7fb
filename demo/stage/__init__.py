"""The demo scene as geometry, and its independent renderer; nothing in the toolkit imports this."""
