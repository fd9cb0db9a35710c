"""Declared experiments and the runner that makes numbers of them."""
