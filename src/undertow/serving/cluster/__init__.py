"""The service on a cluster: the same worker and the same API, placed, counted and started again by Ray Serve."""
