"""Errors that users meet. Each says what was given, what is allowed and what to do.

`exit_code` is what the command line ends with: 2 bad input, 3 a gate failed, 1 a fault of ours.
"""

from __future__ import annotations


class SlipwayError(Exception):
    """Base of all errors that Slipway raises on purpose."""

    exit_code = 1


class BadInput(SlipwayError):
    """What was given cannot be used: a file, an option, a checkpoint, a request."""

    exit_code = 2


class GateFailed(SlipwayError):
    """A measured result is outside the recipe's tolerance (parity, accuracy)."""

    exit_code = 3


class Busy(SlipwayError):
    """The bounded queue is full; the request was not taken and may be sent again later."""
