"""Images drawn here, by numpy and from geometry alone: playing cards, streets with signs, views of panoramas."""
