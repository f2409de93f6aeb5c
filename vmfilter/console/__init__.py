"""Printing, progress and signals, shared by both command lines."""
