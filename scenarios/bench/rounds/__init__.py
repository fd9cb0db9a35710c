"""Federated rounds of exchange ``updates``."""
