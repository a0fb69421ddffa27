"""Studies of what the method does on the demo and elsewhere."""
