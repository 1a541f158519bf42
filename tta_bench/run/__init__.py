"""One trial on one device: the loop over batches, and what is measured around it."""
