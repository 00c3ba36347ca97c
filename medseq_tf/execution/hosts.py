"""The hosts of a distributed training, as `TF_CONFIG` names them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

from medseq_tf.errors import InputError

VARIABLE = "TF_CONFIG"

_EXPECTED = (
    'expected {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}, '
    "the index that of this host"
)
_ADDRESS = re.compile(r"([^\s/:\[\]]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")


@dataclass(frozen=True)
class Host:
    """One host of a distributed training: one process, and where it finds the others.

    Attributes:
        addresses: `HOST:PORT` of all hosts; the first is the chief's.
        place: of this one among them.
    """

    addresses: tuple[str, ...]
    place: int

    @property
    def is_chief(self) -> bool:
        """Whether it is the one that writes."""
        return self.place == 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.name_of(self.place)

    def name_of(self, place: int) -> str:
        """Return what messages call the host at a place."""
        role = ", the chief" if place == 0 else ""
        return f"host {place + 1} of {len(self.addresses)} ({self.addresses[place]}{role})"

    def to_json(self) -> str:
        """Return it as a value of `TF_CONFIG`."""
        task = {"type": "worker", "index": self.place}
        return json.dumps({"cluster": {"worker": list(self.addresses)}, "task": task})


def host_of_environment() -> Host | None:
    """Return this host, if `TF_CONFIG` names several.

    Raises:
        InputError: `TF_CONFIG` is malformed, or has tasks other than `chief` and `worker`.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        told = json.loads(text)
        cluster, task = told["cluster"], told.get("task", {})
        jobs = {str(job): list(addresses) for job, addresses in cluster.items()}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise InputError(f"{VARIABLE}: is not what it should be; {_EXPECTED}") from None
    if others := sorted(set(jobs) - {"chief", "worker"}):
        raise InputError(
            f"{VARIABLE}: has tasks of the type {others[0]}, and a model is trained by chief and "
            "worker alone; leave them out"
        )
    addresses = [*jobs.get("chief", []), *jobs.get("worker", [])]
    if len(jobs.get("chief", [])) > 1:
        raise InputError(f"{VARIABLE}: has several chiefs; name the others as worker")
    for address in addresses:
        _check(address, addresses)
    if len(addresses) < 2:
        return None
    return Host(tuple(addresses), _place(jobs, task))


def require_one_host(command: str) -> None:
    """Raise an InputError where `TF_CONFIG` names several hosts, of which a command knows one."""
    if host_of_environment() is not None:
        raise InputError(f"{VARIABLE}: names several hosts, and {command} takes one; unset it")


def _check(address: Any, addresses: list[Any]) -> None:
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or not 0 < int(match[2]) < 2**16:
        raise InputError(f"{VARIABLE}: {address!r} is no HOST:PORT; {_EXPECTED}")
    if addresses.count(address) > 1:
        raise InputError(f"{VARIABLE}: names {address} twice; each host has an address of its own")


def _place(jobs: dict[str, list[str]], task: Any) -> int:
    kind = task.get("type") if isinstance(task, dict) else None
    index = task.get("index") if isinstance(task, dict) else None
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    tasks = len(jobs.get(kind, [])) if isinstance(kind, str) else 0
    if type(index) is not int or not 0 <= index < tasks:
        said = f"type {kind!r} and index {index!r}"
        raise InputError(
            f"{VARIABLE}: this host's task has {said}, which the cluster does not; {_EXPECTED}"
        )
    return index if kind == "chief" else index + len(jobs.get("chief", []))
