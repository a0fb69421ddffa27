"""Training of a pyramid, scale by scale."""
