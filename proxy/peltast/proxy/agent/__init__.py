"""A sidecar's agent."""
