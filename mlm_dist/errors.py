"""Exceptions that end a command with one line for each mistake."""

from os import PathLike


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


def refuse_single(name: str, values: object, kind: str) -> None:
    """Raise a `UserError` if a list of texts or paths is a single one, whose characters would be read as its items.

    Args:
        name: of the argument, for the message.
        values: the argument.
        kind: what it is a list of, for the message.
    """
    if isinstance(values, str | bytes | PathLike):
        raise UserError(f"{name} is a single {kind}: give a list of {kind}s")
