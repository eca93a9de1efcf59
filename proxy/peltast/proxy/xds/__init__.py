"""xDS: from snapshots to what sidecars are configured with."""
