"""What ends a command from outside, and leaves something to go on with."""

import signal


class Interruption(Exception):
    """Ctrl-C or SIGTERM: what was done is kept, and the message says how to go on."""

    number: int = signal.SIGINT
