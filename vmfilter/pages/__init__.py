"""Which pages are kept: exclude.py decides, classify.py finds out what each page frame was used for."""
