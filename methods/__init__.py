"""Built-in methods, one a file, registered through the same entry points as a stranger's plugin."""
