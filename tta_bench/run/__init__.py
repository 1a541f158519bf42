"""Running a trial on one device: supervisor, child, meters, grading."""
