"""Ciphers a network can learn from, their registry, and their public parameters."""
