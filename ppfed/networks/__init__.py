"""The networks, their description, and the part of them that travels and is stored."""
