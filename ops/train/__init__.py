"""Training of the two scout models and of the linear heads; see README.md here. The fleet never imports it."""
