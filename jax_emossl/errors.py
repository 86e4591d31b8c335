"""The one error type for everything a user can mend."""


class UserError(Exception):
    """A mistake in an input: its message is one sentence that names the culprit and the mend.

    Command-line entry points print it without a traceback and exit with code 2.
    """
