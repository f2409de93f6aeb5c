"""Which pages a dump keeps: classify.py finds out what each page frame was used for, exclude.py decides."""
