"""Images: where they come from, how they rest on disk, and the two types that keep plain and encrypted apart."""
