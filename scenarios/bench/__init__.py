"""``ppfed bench``: how fast ppfed is, as ratios to something measured in the same run."""
