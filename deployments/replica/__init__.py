"""What every replica does beside its deployment: health, draining, threads, errors in its log."""
