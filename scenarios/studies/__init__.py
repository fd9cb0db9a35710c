"""Measurements that are no scenario, each a command of its own; their rows and numbers stand in docs."""
