"""How a text runs on a device: recorded steps, caches, session files, profile."""
