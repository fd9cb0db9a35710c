"""Attacks on ciphers that work on blocks of pixels: bit planes, jigsaw puzzles, templates."""
