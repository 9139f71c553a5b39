"""Exceptions that end a command with one line for each mistake."""


class UserError(Exception):
    """Something the user gave is wrong. Each line names it and says what to do.

    A command prints the lines alone and exits with code 2.

    Args:
        *lines: one for each mistake.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class RunError(UserError):
    """A run cannot continue although nothing the user gave is wrong: a full disk, a non-finite loss, a lost process.

    Also one line, but exit code 1.
    """

    exit_code = 1
