"""What owners send in place of images: gradients and weights, and what they give away."""
