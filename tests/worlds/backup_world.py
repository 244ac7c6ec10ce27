"""A backup of a home, and how it is put back."""

from __future__ import annotations

import shutil
from pathlib import Path

NOT_OF_THE_HOME = ("console.log", "lock")


class Backup:
    """A home as it was when no process wrote into it.

    :param folder: where the copy is, which is made now
    """

    def __init__(self, home: Path, folder: Path) -> None:
        self.home, self.folder = home, folder
        shutil.copytree(home, folder)

    def put_back(self, *names: str) -> None:
        """These files, or all that the home has when none are named."""
        for name in names or [path.name for path in self.home.iterdir()]:
            if names or name not in NOT_OF_THE_HOME:
                self._gone(name)
        for name in names or [path.name for path in self.folder.iterdir()]:
            old = self.folder / name
            if old.is_dir():
                shutil.copytree(old, self.home / name)
            elif old.exists() and name not in NOT_OF_THE_HOME:
                shutil.copy2(old, self.home / name)

    def _gone(self, name: str) -> None:
        for path in (self.home / name, *(self.home / f"{name}{end}" for end in ("-wal", "-shm"))):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
