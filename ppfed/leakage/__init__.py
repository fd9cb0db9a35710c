"""What an attacker gets: attacks run against a cipher, measured, written down and shown."""
