"""The name a prediction carries: what made it, so that equal names mean equal predictions."""

from __future__ import annotations

import re

import cavsam
from backend.errors import BackendError
from backend.settings import Settings
from cavsam.errors import ModelError
from cavsam.weights.sources import fingerprint

VERSION_PREFIX = "cavsam-"


def base_version(settings: Settings) -> str:
    """Code, models, mode and a hash of models and recipe: `cavsam-0.1.0-nano-full-3f2a9c1b`.

    Models that are not on this machine yet have another version once they are fetched.

    Raises:
        BackendError: a file of the models cannot be read.
    """
    sources, recipe = settings.sources(), settings.method()
    name = "nano" if sources.is_nano else sources.name
    try:
        models = fingerprint(sources, recipe)
    except (ModelError, OSError) as error:
        raise BackendError(str(error)) from error
    return f"{VERSION_PREFIX}{cavsam.__version__}-{name}-{recipe.mode}-{models}"


def model_version(base: str, reference_key: str | None) -> str:
    """The base with the reference's hash: `cavsam-0.1.0-nano-full-3f2a9c1b-r8d1e22f0`; the base where there is none."""
    return f"{base}-r{reference_key}" if reference_key else base


def taught_version(version: str, lesson: str) -> str:
    """A version with the name of the lesson that predictions are made with; see `learning/lessons.py`."""
    return f"{version}-l{lesson}" if lesson else version


def untaught(version: str) -> str:
    """What `taught_version` began with."""
    return re.sub(r"-l[0-9a-f]{8}$", "", version)


def base_of(version: str) -> str:
    """The base of a version: what its predictions have in common with those of other references."""
    return re.sub(r"-r[^-]*$", "", untaught(version))
