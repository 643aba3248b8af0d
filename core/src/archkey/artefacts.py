# SPDX-License-Identifier: Apache-2.0
"""Compiled programs on disk: private, checked, and there as a whole or not at all.

    <cache>/artefacts/<key>/entry.json      {"format", "key", "files": {name: {"bytes", "sha256"}}}
    <cache>/artefacts/<key>/rmsnorm.cubin   the files themselves, as the compiler wrote them

The key says all that decides the machine code (`archkey.compilation`), so an entry never becomes
wrong, and the folder may be deleted at any time. Nothing is unpickled. An entry that is damaged,
truncated, of another key, of another user, or that others could have written, is not used: it is
built anew. The same holds for the folder, which must be ours alone (0700).

Any number of processes may use it at once. An entry is written beside its place and renamed into
it, so nobody reads half of one; of two that build the same, the first one's stays.

`<cache>` is ARCHKEY_CACHE_DIR, or the user's cache folder; `ARCHKEY_CACHE=0` does without.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from archkey._files import cache_path
from archkey.settings import settings

__all__ = ["Store", "store"]

log = logging.getLogger("archkey")

_FORMAT = 1
_ENTRY = "entry.json"


class _Unusable(Exception):
    """What is on disk must not be used; the message says why."""


class Store:
    """Entries below `root`, which is made if it is not there. OSError if it cannot be private."""

    def __init__(self, root: Path) -> None:
        root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        try:
            _own(os.lstat(root), stat.S_ISDIR)
        except _Unusable as error:
            raise PermissionError(f"{root} {error}") from None
        self.root = root

    def load(self, key: str) -> dict[str, str] | None:
        """The files of `key`, name -> path, each checked just now; None if there is no such entry.

        None also for one that must not be used, which is said to the log.
        """
        folder = self.root / key
        try:
            return _checked(folder, key)
        except FileNotFoundError:
            if not os.path.lexists(folder):
                return None
            why = "lacks a file"
        except (_Unusable, OSError) as error:
            why = str(error)
        log.warning("artefact %s %s: it is not used and will be built anew", folder, why)
        return None

    def save(self, key: str, files: Mapping[str, bytes]) -> None:
        """Make `files` the entry of `key`, unless there is one that may be used. May raise OSError.

        What is in its place and may not be used is removed.
        """
        described = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        entry = {"format": _FORMAT, "key": key, "files": described}
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))  # 0700
        try:
            for name, content in (*files.items(), (_ENTRY, json.dumps(entry).encode())):
                _write(new / name, content)
            self._place(new, key)
        finally:
            _remove(new)  # gone already if it found its place

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Within it, no other process is within it for `key`, where the file system can lock."""
        import filelock  # after `import archkey`, which must stay light

        # Of few files, which stay; two keys of one file wait for each other now and then.
        lock = filelock.FileLock(self.root / f".lock-{key[:2]}", mode=0o600)
        with ExitStack() as held:
            with suppress(OSError, NotImplementedError):  # to build twice is no harm
                held.enter_context(lock)
            yield

    def _place(self, new: Path, key: str) -> None:
        place = self.root / key
        with suppress(OSError):  # something is there
            os.rename(new, place)
            return
        if self.load(key) is not None:
            return
        aside = Path(tempfile.mkdtemp(prefix=".old-", dir=self.root))
        try:
            with suppress(FileNotFoundError):  # another process was first
                os.rename(place, aside / key)
            with suppress(OSError):  # it was that other one's turn: its entry stays
                os.rename(new, place)
        finally:
            _remove(aside)


@functools.lru_cache(maxsize=1)
def store() -> Store | None:
    """The user's store; None where it is switched off, or cannot be had, which is said once."""
    if not settings().cache:
        return None
    try:
        return Store(cache_path("artefacts"))
    except OSError as error:
        log.warning(
            "what is compiled will not be kept: %s; ARCHKEY_CACHE_DIR names another folder, "
            "ARCHKEY_CACHE=0 does without",
            error,
        )
        return None


def _checked(folder: Path, key: str) -> dict[str, str]:
    """Paths of the entry in `folder`. _Unusable or OSError for one that must not be used."""
    _own(os.lstat(folder), stat.S_ISDIR)
    entry = _parsed(_read(folder / _ENTRY))
    if entry.get("format") != _FORMAT or entry.get("key") != key:
        raise _Unusable("is the entry of another key or format")
    files = entry.get("files")
    if not isinstance(files, dict) or not files:
        raise _Unusable("names no files")
    for name, facts in files.items():
        if name != os.path.basename(name) or not isinstance(facts, dict):
            raise _Unusable("names a file outside of its folder")
        content = _read(folder / name)
        if len(content) != facts.get("bytes"):
            raise _Unusable(f"holds {len(content)} bytes of {name}, not {facts.get('bytes')}")
        if hashlib.sha256(content).hexdigest() != facts.get("sha256"):
            raise _Unusable(f"holds a damaged {name}")
    return {name: str(folder / name) for name in files}


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(content)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise _Unusable(f"has no readable {_ENTRY}")
    return entry


def _own(found: os.stat_result, kind: Any) -> None:
    """_Unusable unless it is of this `kind`, of this user, and no one else may write or read it."""
    if not kind(found.st_mode):
        raise _Unusable("is a link or of another kind than expected")
    if found.st_uid != os.geteuid():
        raise _Unusable(f"belongs to user {found.st_uid}, this is user {os.geteuid()}")
    if found.st_mode & 0o077:
        raise _Unusable(f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})")


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait
    with os.fdopen(handle, "rb") as file:
        _own(os.fstat(handle), stat.S_ISREG)
        return file.read()


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
