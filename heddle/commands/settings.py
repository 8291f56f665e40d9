"""What the global options of this invocation said: written by ``options.py``, read by all."""

from __future__ import annotations

from typing import Literal

ColorChoice = Literal["auto", "always", "never"]


class Settings:
    """The global options.

    Attributes:
        json: print one JSON object instead of text.
        quiet: print no confirmations and no notes.
        verbose: say more, tracebacks of internal errors included.
        color: ``auto``, ``always`` or ``never``.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last invocation: one process may run several, as the tests do."""
        self.json = False
        self.quiet = False
        self.verbose = False
        self.color: ColorChoice = "auto"


settings = Settings()
