"""What the benchmarks stand on: a link with a real round trip, an origin, a precise client."""
