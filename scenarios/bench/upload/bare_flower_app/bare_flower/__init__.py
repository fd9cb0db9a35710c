"""Flower alone, for comparison."""
