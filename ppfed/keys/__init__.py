"""Secret keys and the files that hold them. Owners only: the coordinator never imports this package."""
