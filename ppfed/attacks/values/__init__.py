"""Attacks on ciphers that change values where they stand: negative-positive transforms and colour shuffles."""
