"""A trained model as one graph, from images to scores and maps, that runs without hta: `python -m hta.export`."""
