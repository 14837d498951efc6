"""How many tokens go to the device at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TokenBudget:
    """Tokens of one pack; halved for good where the device cannot take them.

    `must_hold_each`: a sequence over the budget is an error; otherwise it goes alone.
    """

    tokens: int
    must_hold_each: bool = False
    halvings: int = 0

    def halve(self) -> None:
        self.tokens = max(1, self.tokens // 2)
        self.must_hold_each = False
        self.halvings += 1
