"""Command-line options that determine how an ensemble is selected."""

from dataclasses import dataclass
from typing import Literal

from data.errors import UserError, parse_positive_int
from data.runtime.options import flag, option
from ensemble.selection.greedy import SelectionConfig

EXPERT = "for experts"
"""Section of the help for options that most selections leave at their defaults."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Command-line options of the selection method."""

    method: Literal["greedy", "exact", "all"] = option(
        "greedy selection, the best of all subsets, or the mean of all", "greedy"
    )
    refine: bool = option("then remove and swap members while that improves the metric", False)
    among: int = option("select from the N best single candidates only", 0, type=parse_positive_int, metavar="N")
    max_size: int | None = option(
        f"maximum number of steps (default: {SelectionConfig.max_size})", None, type=parse_positive_int, section=EXPERT
    )
    without_replacement: bool = option("add each candidate at most once", False, section=EXPERT)
    sorted_start: int = option(
        "start from the N best candidates", 0, type=parse_positive_int, metavar="N", section=EXPERT
    )
    bags: int = option(
        "average B selections, each from a random subset", 0, type=parse_positive_int, metavar="B", section=EXPERT
    )
    bag_share: float | None = option(
        f"share of the candidates in each of the --bags (default: {SelectionConfig.bag_share})", None, section=EXPERT
    )
    seed: int | None = option(f"seed of the --bags (default: {SelectionConfig.seed})", None, section=EXPERT)
    stop: Literal["best", "one-se"] = option(
        "stop at the best size, or at the smallest within one standard error of it", "best", section=EXPERT
    )

    def build_config(self) -> SelectionConfig:
        """Return the config of the selection that the options describe. Raises UserError for options that cannot be
        combined.
        """
        for name in ("sorted_start", "bags", "without_replacement", "max_size"):
            if self.method != "greedy" and getattr(self, name):
                raise UserError(f"{flag(name)} only applies to --method greedy: leave it out")
        if self.method != "greedy" and self.stop != "best":
            raise UserError("--stop only applies to --method greedy: leave it out")
        for name in ("bag_share", "seed"):
            if getattr(self, name) is not None and not self.bags:
                raise UserError(f"{flag(name)} only applies to --bags: leave it out")
        try:
            return SelectionConfig(
                method=self.method,
                max_size=self.max_size or SelectionConfig.max_size,
                replacement=not self.without_replacement,
                among=self.among,
                sorted_start=self.sorted_start,
                stop=self.stop,
                refine=self.refine,
                bags=self.bags,
                bag_share=SelectionConfig.bag_share if self.bag_share is None else self.bag_share,
                seed=SelectionConfig.seed if self.seed is None else self.seed,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
