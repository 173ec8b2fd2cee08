"""Providers: one file each, all behind `base.Provider`."""
