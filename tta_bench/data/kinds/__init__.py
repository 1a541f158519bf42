"""Built-in kinds of data, one a file; each is a plugin like a stranger's."""
