"""The check service: decisions for whoever cannot make them in its own process."""
