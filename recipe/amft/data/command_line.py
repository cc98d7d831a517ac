"""What the data commands share: errors of one line, near names for unknown options, a folder to write into."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on the error stream, with exit status 2."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's; an option that does not exist is answered with the nearest ones."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=3, cutoff=0.4)
            hint = f"; the nearest options: {', '.join(near)}" if near else ""
            self.error(f"{' '.join(unknown)} is not understood{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (all options: {self.prog} --help)\n")


def folder_to_write(text: str) -> Path:
    """The type of `--out`: a folder, which need not exist; an error before anything is read."""
    path = Path(text)
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"{nearest} cannot be written; give another folder")
    return path
