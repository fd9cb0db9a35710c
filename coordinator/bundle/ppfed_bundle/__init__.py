"""The app bundle of a run; see its pyproject.toml."""
