"""Emails to and from MIME: the standard library parses and writes, this package decides what the result means.

`from_bytes` and `from_message` read what somebody else wrote, and refuse what they would have to guess, with an
`EmailError` that names the header at fault. `to_message` writes an email so that it reads back as the same email.
"""

from idem.mime.reading import MAX_NESTING, from_bytes, from_message
from idem.mime.writing import to_message

__all__ = ["MAX_NESTING", "from_bytes", "from_message", "to_message"]
