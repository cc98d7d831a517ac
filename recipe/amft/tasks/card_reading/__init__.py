"""Read the rank of one card: the smallest task that pixels decide."""
