"""Brokers: where jobs wait between a producer and a worker; one file each."""
