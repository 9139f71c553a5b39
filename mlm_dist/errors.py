"""Exceptions that end a command with one line."""


class UserError(Exception):
    """Something the user gave is wrong. The message is one line that names it and says what to do.

    A command prints the line alone and exits with code 2. Every other exception is a bug and keeps its traceback.
    """

    exit_code = 2


class RunError(UserError):
    """A run cannot continue although nothing the user gave is wrong: a full disk, a non-finite loss, a lost process.

    Also one line, but exit code 1.
    """

    exit_code = 1
