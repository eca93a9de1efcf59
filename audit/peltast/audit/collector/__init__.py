"""The collector: what nodes ship, into the store."""
