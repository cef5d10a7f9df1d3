"""Mistakes of a user: the one exception that is shown as a single line, and a parser that raises it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
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


def check_number(
    option: str, value: float | Sequence[float], least: float, most: float = math.inf, above: bool = False
) -> None:
    """Raise a UserError unless an option is a number, or a list of numbers, in its range.

    Args:
        option: name of the option, with `--`.
        value: its value.
        least: smallest value allowed.
        most: largest value allowed; infinity itself is refused.
        above: `least` itself is too small.

    Raises:
        UserError: it is not.
    """
    for number in [value] if isinstance(value, int | float) else value:
        if not least <= number <= most or number == math.inf or (above and number == least):
            start = f"more than {_shown(least)}" if above else _shown(least)
            end = " or more" if most == math.inf and not above else f" to {_shown(most)}" if most < math.inf else ""
            raise UserError(f"{option} {_shown(number)}: use {start}{end}")


def _shown(number: float) -> str:
    if isinstance(number, int):  # which may be too large for a float, and for text
        return str(number) if abs(number) < 10**18 else "of more than 18 digits"
    return f"{number:g}"
