"""What a run's folder holds: records, tables, logs; written atomically, read back, merged."""
