"""Pooled upload: encrypted images on their way from the owners to the coordinator's disk."""
