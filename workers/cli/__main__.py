"""`python -m workers.cli` is `idem`."""

from workers.cli import main

main()
