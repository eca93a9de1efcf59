"""How a node proves who it is, the first time."""
