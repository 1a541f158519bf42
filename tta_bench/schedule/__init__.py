"""Trials to devices: one after another or on Ray, with what is done about faults."""
