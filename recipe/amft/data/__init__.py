"""Data sets: demonstrations, preparation and splits."""
