"""Prices of chat models, for estimates and budgets."""

import re
from dataclasses import dataclass

AS_OF = "2025-06"
"""Date of these prices in OpenAI's public list. `--price` overrides them."""

PRICES = {
    "gpt-3.5-turbo": (0.50, 1.50),
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o": (2.50, 10.00),
    "gpt-4.1-nano": (0.10, 0.40),
    "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1": (2.00, 8.00),
    "gpt-3.5-turbo-1106": (1.00, 2.00),
    "gpt-3.5-turbo-0613": (1.50, 2.00),
    "gpt-4o-2024-05-13": (5.00, 15.00),
}
"""USD per million tokens of requests and of answers. A dated model has an entry if its price differs."""

BATCH_PRICE_SHARE = 0.5
"""Price of requests through the Batch API, as a share of the normal price."""


@dataclass(frozen=True)
class Price:
    """Price of a model in USD per million tokens: `input` for tokens of requests, `output` for tokens of answers."""

    input: float
    output: float

    def compute_cost(self, input_tokens: float, output_tokens: float) -> float:
        """Return the cost in USD of `input_tokens` tokens of requests and `output_tokens` tokens of answers."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


def find_price(model: str) -> Price | None:
    """Return a model's price, also for a dated name such as 'gpt-4o-mini-2024-07-18'; None if unknown."""
    undated = re.sub(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$", "", model)
    prices = PRICES.get(model) or PRICES.get(undated)
    return Price(*prices) if prices else None
