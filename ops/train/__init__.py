"""Training of the two scout models; see README.md here. The fleet never imports it."""
