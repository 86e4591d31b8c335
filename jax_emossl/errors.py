"""The one error type for everything a user can mend, and notices of what the program did about it itself."""

import contextlib
import signal
import sys
from collections.abc import Iterator


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


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """A command within: a user's mistake, or a file that cannot be read or written, ends it with one sentence and exit code 2."""
    try:
        yield
        return
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}."
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def interruptible(left: str) -> Iterator[None]:
    """`one_sentence` for a command that SIGTERM, too, interrupts: it cleans up, says what is `left` of its work, and ends with exit code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with one_sentence():
            yield
    except KeyboardInterrupt:
        print(f"Interrupted: {left}", file=sys.stderr)
        sys.exit(130)
