"""Webhooks: other services' events, verified, and enqueued as jobs before they are answered.

A **delivery** is one request as it came, a **source** whoever posts, a **scheme** how it signs. One file a sender;
`delivery` and `signatures` hold what they share, `app` is the server's side, `declared` what a user asked for.
"""
