"""Sending the log on: every record at least once, in the order of the log."""
