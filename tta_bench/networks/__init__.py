"""Built-in kinds of source models, one in each module."""
