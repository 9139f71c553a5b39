"""Exceptions that end a command with one line for each mistake."""


class UserError(Exception):
    """The user's input is wrong. Each line names the mistake and says what to do.

    A command prints only these lines and exits with code 2.

    Args:
        *lines: one for each mistake.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class RunError(UserError):
    """A run cannot continue although the input is right: a full disk, a non-finite loss, a missing rank.

    A command prints one line and exits with code 1.
    """

    exit_code = 1
