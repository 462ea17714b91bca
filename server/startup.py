"""Why a server does not start."""


class StartupError(Exception):
    """The server cannot start; the message says in one line why."""
