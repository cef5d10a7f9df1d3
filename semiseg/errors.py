"""Mistakes of a user: the one exception that is shown as a single line, and a parser that raises it."""

from __future__ import annotations

import argparse
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
