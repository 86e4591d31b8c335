"""The one error type for everything a user can mend, and notices of what the program did about it itself."""

import sys


class UserError(Exception):
    """A mistake in an input: its message is one sentence that names the culprit and the mend.

    Command-line entry points print it without a traceback and exit with code 2.
    """

    def __init__(self, sentence: str):
        # It may quote a damaged file.
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in sentence))


def notice(sentence: str) -> None:
    """Tells the user of something that was mended or skipped, and goes on."""
    print(f"notice: {sentence}", file=sys.stderr, flush=True)
