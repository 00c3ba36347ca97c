"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from medseq_tf import cli


def run_command(monkeypatch, capsys, *words):
    """Return exit status, standard output and standard error of a command line."""
    monkeypatch.setattr(sys, "argv", ["medseq-tf", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err
