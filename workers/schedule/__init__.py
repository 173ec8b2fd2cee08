"""Schedules: which slots there are (`slots`, pure), how far they are enqueued (`board`), who does it (`scheduler`)."""
