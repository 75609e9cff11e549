"""Conversion of ensemble.json files of earlier formats."""

from collections.abc import Callable, Mapping
from typing import Any

from data.errors import UserError


def migrate_format_2(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the content of an ensemble.json file of format 2, which has been parsed as JSON, converted to format 3.
    Raises UserError, which begins with `where`, for an invalid field.
    """
    metric = content.get("metric", "map10")

    def estimates(values: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in values if not name.endswith("_interval")]
        return {name: {"value": values[name], "interval": values[f"{name}_interval"]} for name in names}

    def split_metrics(section: Mapping[str, Any]) -> dict[str, Any]:
        systems = {name: estimates(value) for name, value in section.items() if isinstance(value, dict)}
        return {"split": section["split"], "fingerprint": section["fingerprint"], "systems": systems}

    def nested(section: Mapping[str, Any]) -> dict[str, Any]:
        return {**section, **{name: estimates(section[name])["value"] for name in ("ensemble", "best_single")}}

    def methods(entries: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        names = ("validation", "test")
        splits = [{name: estimates(entry[name]) for name in names if name in entry} for entry in entries]
        folds = [{"nested": estimates(entry["nested"])["value"]} if "nested" in entry else {} for entry in entries]
        return [{**entry, **split, **fold} for entry, split, fold in zip(entries, splits, folds, strict=True)]

    def trajectory(entries: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{"added": step["added"], "removed": step["removed"], "value": step[metric]} for step in entries]

    def before_retraining(section: Mapping[str, Any]) -> dict[str, Any]:
        return migrate_format_2({"metric": metric, "members": [], **section}, f"{where}: before_retraining")

    changes: dict[str, Callable[[Any], Any]] = {
        "validation": split_metrics, "test": split_metrics, "nested": nested, "methods": methods,
        "trajectory": trajectory, "before_retraining": before_retraining,
    }  # fmt: skip
    migrated = {**content, "fusion": content.get("fusion_name", "mean")}
    for name in changes.keys() & content.keys():
        try:
            migrated[name] = changes[name](content[name])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: {name}: invalid in format 2 ({error!r}): select the ensemble again") from error
    return migrated
