"""What an attacker without the key does to encrypted images."""
