"""Trials to devices: in this process or on Ray, with what is done about faults."""
