"""This project, on Redis and DynamoDB."""

from __future__ import annotations

from idem import Email
from workers import App

app = App.from_env()


@app.job()
def email(number: int) -> Email:
    """Build one email."""
    return Email(from_="shop@example.com", to="user@example.com", subject=f"job-{number}", text="Thank you.")
