"""The columns of `studies.parquet` that are no labels: `site`, `date`, `covariate.<name>`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medseq_tf.dataset.preparation import Preparation, digest
from medseq_tf.readers import AuditEntry
from medseq_tf.readers.columns import COVARIATE, OtherColumns
from medseq_tf.readers.table import number_of


def other_values(preparation: Preparation, sources: Iterable[str]) -> list[dict[str, Any]]:
    """Return what the columns say of some studies, as it is kept.

    A site that is not to be kept by its name becomes `site-<hash>`, salted as ids are; a date its
    rank among those of these studies, equal dates alike, 0 for the oldest.

    Args:
        preparation: of the source.
        sources: of the studies that are in the data set.
    """
    columns = preparation.index.columns
    if columns is None:
        return [{} for _ in sources]
    by_source = {study.source: study.others for study in preparation.index.studies}
    rows = [dict(by_source[source]) for source in sources]
    days = sorted({row["date"] for row in rows if row.get("date") is not None})
    ranks = {day: rank for rank, day in enumerate(days)}
    for row in rows:
        if "date" in row:
            row["date"] = ranks.get(row["date"])
        if row.get("site") is not None and columns.site_names == "hash":
            row["site"] = f"site-{digest(preparation.salt, 'site', row['site'])[:8]}"
    return rows


def kinds(columns: OtherColumns) -> dict[str, str]:
    """Return what each column holds: `text`, `whole` numbers or `numbers`."""
    of_covariates = {
        f"{COVARIATE}{name}": "numbers" if covariate["kind"] == "number" else "text"
        for name, covariate in columns.covariates.items()
    }
    every = {"site": "text", "date": "whole", **of_covariates}
    return {name: every[name] for name in columns.names}


def content(columns: OtherColumns, rows: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Return what a fingerprint is made of; a hashed site counts as which studies share it."""
    sites: dict[str, int] = {}
    values = []
    for row in rows:
        kept = {name: row[name] for name in columns.names}
        if columns.site_names == "hash" and kept.get("site") is not None:
            kept["site"] = sites.setdefault(kept["site"], len(sites))
        values.append(list(kept.values()))
    return columns.to_json(), values


def audit_entries(columns: OtherColumns, rows: list[dict[str, Any]]) -> list[AuditEntry]:
    """Count the studies of which a column says nothing, and name those of numbers and names."""
    counts = {name: sum(row[name] is None for row in rows) for name in columns.names}
    missing = [
        AuditEntry("column with missing values", name, f"in {count} of {len(rows)} studies")
        for name, count in counts.items()
        if count
    ]
    mixed = []
    for name, covariate in columns.covariates.items():
        words = [c for c in covariate.get("categories", ()) if number_of(c) is None]
        if words and len(words) < len(covariate["categories"]):
            detail = f"all are names because of {', '.join(words)}; leave unknown numbers empty"
            mixed.append(AuditEntry("column of numbers and names", f"{COVARIATE}{name}", detail))
    return missing + mixed
