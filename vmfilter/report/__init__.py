"""Statistics as people and programs read them."""
