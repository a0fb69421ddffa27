"""How fast hta is, and how that grows: `python -m hta.speed`."""
