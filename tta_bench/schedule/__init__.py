"""Scheduling: trials on Ray workers or one after another, retries, progress."""
