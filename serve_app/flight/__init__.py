"""One render per key, in one process and in the whole cluster; see `cluster_flight`."""
