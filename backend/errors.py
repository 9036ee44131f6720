"""What can go wrong in the backend, in words for the person who can mend it.

Each message is one or two plain sentences that say what to do; details belong in the log. `app` maps these types to
status codes in one place.
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all errors that the backend raises on purpose."""


class SettingsError(BackendError):
    """Settings that are missing, malformed or contradict each other."""


class InvalidRequest(BackendError):
    """A call that Label Studio would not make: a missing field, or a field of the wrong type."""


class NotKnown(BackendError):
    """A project, task or picture that the backend does not have."""


class NotPossibleNow(BackendError):
    """What was asked for does not fit what the backend is doing, such as cancelling a task that is not in work."""


class CrossSiteRequest(BackendError):
    """A browser sent this call on behalf of a page of another site, or may have."""


class TooBusy(BackendError):
    """No thread is free for this; the caller may try again in a moment."""


class NotCorrected(BackendError):
    """SAM2 or the method failed on a click; the message is its own sentence."""


class LabelConfigError(BackendError):
    """A labelling configuration that cannot be read at all."""


class UnusableRegion(BackendError):
    """A region that cannot be turned into a mask."""


class ImageUnavailable(BackendError):
    """A task's image that cannot be fetched; `permanent` when trying again will not help."""

    def __init__(self, message: str, *, permanent: bool = False):
        super().__init__(message)
        self.permanent = permanent


class ImageServerFault(ImageUnavailable):
    """A host that answers for its images with something else for now, which is no fault of the image or its task."""


class ImageNotKept(ImageUnavailable):
    """The folder of fetched images cannot be written, which is no fault of the image or its task."""


class LabelStudioError(BackendError):
    """Label Studio's API refused, failed or could not be reached."""


class LabelStudioUnreachable(LabelStudioError):
    """No answer from Label Studio: not running, wrong address, or too slow.

    `sent` tells that the request may have been carried out although no answer came.
    """

    def __init__(self, message: str, *, sent: bool = False):
        super().__init__(message)
        self.sent = sent


class LabelStudioDenied(LabelStudioError):
    """The API key is missing, not valid, or lacks the permission."""


class LabelStudioNotFound(LabelStudioError):
    """The project, task or annotation does not exist (any more)."""


class LabelStudioRejected(LabelStudioError):
    """Label Studio found fault with what was sent (status 400)."""


class LedgerError(BackendError):
    """The ledger cannot be read or written: a full disk, a lock that somebody holds, a damaged file."""


class LedgerDamaged(LedgerError):
    """The ledger's file can never be read again; another takes its place."""


class DataFolderBusy(BackendError):
    """Another backend process works with the same data folder."""


class PortBusy(BackendError):
    """The address that the backend should listen on cannot be had."""


class ModelProcessDied(BackendError):
    """The model's process ended in the middle of a job."""


class ModelProcessStopped(BackendError):
    """The model's process was stopped on purpose."""


class ModelUnavailable(BackendError):
    """The model could not be loaded; the message is the model's own sentence."""
