"""Errors that a user can act on.

Every message is a sentence that says what is wrong and what to do. The command
line prints it without a traceback and exits with code 2.
"""


class DermlensError(Exception):
    """Base class of every error that dermlens raises on purpose."""


class DataError(DermlensError):
    """The data set, or a file of it, cannot be used as it is."""


class DownloadError(DermlensError):
    """A file could not be fetched completely and correctly."""


class ModelError(DermlensError):
    """A model, its weights or its bundle cannot be used as they are."""


class ExplanationError(DermlensError):
    """An explanation was asked for that the method or the model cannot give."""


class UsageError(DermlensError):
    """An argument has a value that the command or function does not take."""
