"""Errors in words for the person who caused them.

Every message states the fact, then the remedy; the details belong in the log.
"""


class CavSamError(Exception):
    """Base of all errors that a user of the package is expected to see and can act on."""


class ImageError(CavSamError):
    """An image or mask file that cannot be read."""


class InvalidReference(CavSamError):
    """A reference that cannot teach anything: an empty mask, or one of another size than its image."""


class ModelError(CavSamError):
    """Weights that are missing, do not fit their configuration, or cannot be fetched."""


class UsageError(CavSamError):
    """A call of the library with arguments that cannot be meant."""


class RecipeError(CavSamError):
    """A hyperparameter that does not exist or is out of its range."""


class NumericalError(CavSamError):
    """A step of the method produced NaN or infinity."""
