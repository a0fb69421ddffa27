"""Scores, decisions and maps from a trained pyramid."""
