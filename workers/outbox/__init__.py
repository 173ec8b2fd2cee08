"""The transactional outbox: what is to be sent is written down in the caller's own database transaction.

A row that is committed reaches the queue at least once, a row that is rolled back never does; and as a row holds its
key, what the queue gets twice is one email. `App.outbox` adds rows (`producer`), `idem relay` takes them to the queue
(`relay`). It works on PostgreSQL, MySQL, MariaDB and SQLite, by SQLAlchemy, which importing this needs.
"""

from __future__ import annotations

from idem.errors import MissingExtra

try:
    from workers.outbox.database import Database
    from workers.outbox.producer import Outbox
    from workers.outbox.relay import Relay
    from workers.outbox.turn import Turn
except ModuleNotFoundError as error:
    if error.name != "sqlalchemy":
        raise
    raise MissingExtra("outbox", "the outbox") from error

__all__ = ["Database", "Outbox", "Relay", "Turn"]
