"""The application for another WSGI server: `gunicorn --workers 1 --threads 16 backend._wsgi:app`.

`cavsam-backend serve` is the ordinary way. Here, too, exactly one worker process may run, and nothing may be loaded
before the fork (no `--preload`): the service's threads and the model's process belong to the process that answers.
"""

from __future__ import annotations

import atexit

from backend.app import create_app
from backend.server import configure_logging
from backend.service import Service
from backend.settings import Settings

settings = Settings.from_environment()
configure_logging(settings)
service = Service(settings)
service.start()
atexit.register(service.stop)
app = create_app(settings, service)
application = app
