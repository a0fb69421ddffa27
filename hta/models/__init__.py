"""Generators, discriminators, the pyramid of all scales, and the only save and load."""
