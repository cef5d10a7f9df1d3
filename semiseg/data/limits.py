"""Bounds on what one array may take of this machine's memory, checked before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from semiseg.errors import UserError, check_number


def memory_limit() -> int:
    """Bytes that one array, or one batch, may take: half of the physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def check_fits(what: str, shape: Sequence[int], bytes_per_element: int, advice: str) -> None:
    """Raise a UserError if an array would take more than `memory_limit`.

    Args:
        what: the file or option that asks for the array, for the message.
        shape: size of the array.
        bytes_per_element: of one element.
        advice: what to do instead.

    Raises:
        UserError: it would.
    """
    size, limit = min(math.prod(int(n) for n in shape) * bytes_per_element, 10**30), memory_limit()
    if size > limit:
        shown = " x ".join(f"{int(n):.4g}" if n > 10**6 else str(n) for n in shape)
        raise UserError(
            f"{what}: {shown} would take {size / 2**30:.4g} GiB of memory; the limit is half of this machine's, "
            f"{limit / 2**30:.3g} GiB; {advice}"
        )


def check_numbers(
    option: str, values: Sequence[float], least: float, most: float, counts: Sequence[int] = (2, 3)
) -> None:
    """Raise a UserError unless an option is a list of so many numbers, each in its range.

    Args:
        option: name of the option, with `--`.
        values: its value.
        least: smallest number allowed.
        most: largest number allowed.
        counts: how many numbers it may have.

    Raises:
        UserError: it is not.
    """
    shown = f"{option} {[*values]}"[:120]
    if len(values) not in counts:
        raise UserError(f"{shown}: give {' or '.join(map(str, counts))} numbers")
    for value in values:
        check_number(f"{shown}: {option.rpartition('.')[2]}", value, least, most)
