"""Mistakes of a user: the one exception that is shown as a single line, and a parser that raises it."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn


class UserError(Exception):
    """A mistake a user can mend: the message says what is wrong, in which file or key, and what to do.

    The command line prints it as one line and exits with code 2; nothing else in the package prints or exits.
    """


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog}: {message}; {self.prog} --help says more")


def check_number(option: str, value: float, least: float, most: float = math.inf, above: bool = False) -> None:
    """Raise a UserError unless a number of the command line is one, and in its range.

    Args:
        option: name of the option, with `--`.
        value: its value.
        least: smallest value allowed.
        most: largest value allowed.
        above: `least` itself is too small.

    Raises:
        UserError: it is not.
    """
    if not least <= value <= most or value == math.inf or (above and value == least):
        start = f"more than {_shown(least)}" if above else _shown(least)
        end = " or more" if most == math.inf and not above else f" to {_shown(most)}" if most < math.inf else ""
        raise UserError(f"{option} {_shown(value)}: use {start}{end}")


def _shown(value: float) -> str:
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else "of more than 18 digits"
    return f"{value:g}"
