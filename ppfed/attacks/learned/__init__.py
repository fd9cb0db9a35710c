"""Networks that an attacker trains to restore images."""
