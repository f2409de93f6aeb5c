"""Page frames as numbers: their classes, the levels that exclude them, sets of them as ranges and bitmaps."""
