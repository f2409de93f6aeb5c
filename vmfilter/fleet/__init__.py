"""Many dumps at once: a batch on a Dask cluster, its manifest and its tables."""
