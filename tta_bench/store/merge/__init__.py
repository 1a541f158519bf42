"""Joining runs of one suite that were made on several machines, by trial key."""
