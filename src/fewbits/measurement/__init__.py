"""Measuring the file that ships, in the session that will run it: metrics, latency, size, memory, executed graph."""
