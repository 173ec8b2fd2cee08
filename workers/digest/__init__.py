"""Digests: one email of many items, for each recipient and window (`digest`); where they wait for it (`pages`)."""
