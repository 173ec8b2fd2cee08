"""Django's emails through the queue: `EMAIL_BACKEND = "workers.django.EmailBackend"`.

With `"workers.django"` among the INSTALLED_APPS, settings that cannot work are told when Django starts.
"""

from workers.django.backend import EmailBackend

__all__ = ["EmailBackend"]
