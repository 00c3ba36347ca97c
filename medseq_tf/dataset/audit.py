"""The audit: what was odd in a source, as plain data and as text."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

from medseq_tf.errors import printable
from medseq_tf.readers import AuditEntry, natural_key


def build_audit(audit_entries: Iterable[AuditEntry], counts: dict[str, int]) -> dict[str, Any]:
    """Return the audit as plain data.

    Args:
        audit_entries: in any order.
        counts: of `studies`, `patients` and `slices` in the data set.

    Returns:
        `data_set` (the counts), `counts` (of entries by kind) and `entries`, each a dict of `kind`,
        `where` and `detail`, ordered by kind, then by where in natural order.
    """
    ordered = sorted(audit_entries, key=lambda e: (e.kind, natural_key(e.where), e.detail))
    by_kind = dict(collections.Counter(entry.kind for entry in ordered))
    entries = [dataclasses.asdict(entry) for entry in ordered]
    return {"data_set": dict(counts), "counts": by_kind, "entries": entries}


def audit_text(audit: dict[str, Any], most: int | None = None) -> str:
    """Return the audit to be read: every kind with its count, and its audit entries by name.

    Args:
        audit: as `build_audit` gives it.
        most: how many audit entries of each kind are named; None: all.
    """
    counts = audit["data_set"]
    lines = [
        f"{counts['studies']} studies of {counts['patients']} patients, {counts['slices']} slices; "
        f"{len(audit['entries'])} audit entries"
    ]
    for kind, count in audit["counts"].items():
        lines.append(f"{count:>6}  {kind}")
        named = [entry for entry in audit["entries"] if entry["kind"] == kind][:most]
        lines += [" " * 10 + _one_line(entry) for entry in named]
        if len(named) < count:
            lines.append(" " * 10 + f"... and {count - len(named)} more, see audit.txt")
    return "\n".join(lines) + "\n"


def _one_line(entry: dict[str, str]) -> str:
    text = f"{entry['where']}: {entry['detail']}" if entry["detail"] else entry["where"]
    return printable(text)
