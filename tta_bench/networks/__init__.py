"""Built-in kinds of networks, one a file; each is a plugin like a stranger's."""
