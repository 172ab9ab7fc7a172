"""The admin listener: what is, for people, probes and Prometheus. It changes nothing."""
