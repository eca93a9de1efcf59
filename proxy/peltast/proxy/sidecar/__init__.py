"""Envoy itself: found, configured, kept running."""
