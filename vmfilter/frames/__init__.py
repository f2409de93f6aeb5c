"""Page frame numbers: classes, dump levels, and sets of frames as ranges and bitmaps."""
