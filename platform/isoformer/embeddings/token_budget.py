"""How many tokens go to the device at once."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass
class TokenBudget:
    """Tokens of one pack; halved for good where the device cannot take them.

    `must_hold_each`: a sequence over the budget is an error; otherwise it goes alone.
    """

    tokens: int
    must_hold_each: bool = False
    halvings: int = 0

    def halve(self) -> None:
        self.shrink_to(max(1, self.tokens // 2))
        self.halvings += 1

    def shrink_to(self, tokens: int) -> None:
        """No more than so many from now on, since memory ran out; a sequence that is longer goes alone."""
        if tokens < self.tokens:
            self.tokens, self.must_hold_each = tokens, False

    def limited(self, tokens: int | None) -> TokenBudget:
        """A budget of its own, shrunk to what is known to fit."""
        budget = replace(self)
        if tokens is not None:
            budget.shrink_to(tokens)
        return budget
