"""``peltast audit``: what is on record."""
