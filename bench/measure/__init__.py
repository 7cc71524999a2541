"""What the benchmarks share: a Roost of their own, a cheap client, the peers, readings of memory, and the report."""
