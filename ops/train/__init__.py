"""Training of the two scout models, the linear heads and mini-vlm; see README.md here. The fleet never imports it."""
