"""Tell CloudWatch for how long the oldest email has been in doubt: `deploy/stack.yaml` has an alarm on it.

To be run every few minutes with the settings and the role of a worker, by whatever timer there is; beside one of the
workers is enough. Prints nothing; ends with status 1 and one line when the ledger or CloudWatch does not answer.
"""

from __future__ import annotations

import sys
import time
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from idem.errors import IdemError
from idem.protocol import State
from workers import App

#: The ledger lists the one longest unchanged first, and whoever looks an email up changes its record.
_MOST = 500


def main() -> int:
    """Look, and publish."""
    app = App.from_env()
    try:
        records = list(app.ledger.list(State.IN_DOUBT, _MOST))
    finally:
        app.close()
    since = min((record.unsure_since or record.updated_at for record in records), default=None)
    _publish(app, 0.0 if since is None else max(0.0, time.time() - since))
    return 0


def _publish(app: App, seconds: float) -> None:
    region = urlsplit(app.settings.ledger_url).hostname
    dimensions = [{"Name": "Namespace", "Value": app.settings.namespace}]
    metric = {"MetricName": "InDoubtAge", "Dimensions": dimensions, "Value": seconds, "Unit": "Seconds"}
    try:
        boto3.client("cloudwatch", region_name=region).put_metric_data(Namespace="idem", MetricData=[metric])
    except (BotoCoreError, ClientError) as error:
        raise IdemError(
            f"CloudWatch does not take the metric ({type(error).__name__}): it needs cloudwatch:PutMetricData"
        ) from error


if __name__ == "__main__":
    try:
        sys.exit(main())
    except IdemError as failed:
        sys.exit(f"error: {failed}")
