"""Finding the projects again that only a damaged store knew."""

from __future__ import annotations

import logging

from backend.errors import LabelStudioDenied, LabelStudioNotFound
from backend.labelstudio.client import LabelStudio

log = logging.getLogger(__name__)


def have_projects_named(connection: LabelStudio) -> None:
    """Have Label Studio call /setup for each project that it has connected us to.

    It calls every backend of a project whose backends are listed. So nothing has to be known of our own address, and
    another backend's projects stay the other's.

    Raises:
        LabelStudioError: not all could be asked for; it may be begun again at any time.
    """
    for project in connection.projects():
        try:
            connection.backends(project)
        except (LabelStudioDenied, LabelStudioNotFound) as error:
            log.warning("Project %d: whether it is connected cannot be seen. %s", project, error)
