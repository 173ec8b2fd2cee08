"""Stores: one file each, all behind `base.Store`, all passing one contract suite."""
