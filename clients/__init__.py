"""What runs at an owner of images: it holds the key, and runs its own code only."""
