"""Quotas: how often something may happen, counted in one place for many who ask."""
