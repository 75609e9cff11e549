"""The options that say how an ensemble is selected."""

from dataclasses import dataclass
from typing import Literal

from data.errors import UserError, positive
from data.runtime.options import flag, option
from ensemble.selection.greedy import Rules


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How an ensemble is selected."""

    method: Literal["greedy", "exact", "all"] = option("greedy, the best of all subsets, or the mean of all", "greedy")
    max_size: int | None = option(f"steps of the selection (default: {Rules.max_size})", None, type=positive)
    without_replacement: bool = option("take each candidate once at most", False)
    sorted_start: int = option("begin with the N best candidates", 0, type=positive, metavar="N")
    bags: int = option("the mean of B selections from some candidates", 0, type=positive, metavar="B")
    bag_share: float | None = option(f"of the candidates in a bag (default: {Rules.bag_share})", None)
    seed: int | None = option(f"of the bags (default: {Rules.seed})", None)
    stop: Literal["best", "one-se"] = option(
        "at the best size, or the smallest within one standard error of it", "best"
    )
    refine: bool = option("then take away and swap members while that helps", False)
    among: int = option("only the N best single candidates", 0, type=positive, metavar="N")

    def rules(self) -> Rules:
        """Return the rules of the selection. Raises UserError for options that don't go together."""
        for name in ("sorted_start", "bags", "without_replacement", "max_size"):
            if self.method != "greedy" and getattr(self, name):
                raise UserError(f"{flag(name)}: that is for --method greedy; leave it out")
        if self.method != "greedy" and self.stop != "best":
            raise UserError("--stop: that is for --method greedy; leave it out")
        for name in ("bag_share", "seed"):
            if getattr(self, name) is not None and not self.bags:
                raise UserError(f"{flag(name)}: that is for --bags; leave it out")
        try:
            return Rules(
                method=self.method,
                max_size=self.max_size or Rules.max_size,
                replacement=not self.without_replacement,
                among=self.among,
                sorted_start=self.sorted_start,
                stop=self.stop,
                refine=self.refine,
                bags=self.bags,
                bag_share=Rules.bag_share if self.bag_share is None else self.bag_share,
                seed=Rules.seed if self.seed is None else self.seed,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
