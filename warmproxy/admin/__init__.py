"""The admin listener: what is, for people, probes and Prometheus; and one wish, POST /warm."""
