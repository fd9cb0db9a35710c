"""The training loop, its settings, and what feeds and speeds it."""
