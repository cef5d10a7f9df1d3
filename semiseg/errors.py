"""The one exception that is shown to a user as a single line."""


class UserError(Exception):
    """A mistake a user can mend: the message says what is wrong, in which file or key, and what to do.

    The command line prints it as one line and exits with code 2; nothing else in the package prints or exits.
    """
