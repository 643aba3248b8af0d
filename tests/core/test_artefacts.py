# SPDX-License-Identifier: Apache-2.0
"""Compiled programs on disk: what is damaged, foreign or half written is never used."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from archkey import artefacts
from archkey.artefacts import Store

KEY = "0123abcd"
FILES = {"body.cubin": b"\x7fELF machine code", "body.json": b'{"name": "body"}'}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artefacts")


def contents(found: dict[str, str] | None) -> dict[str, bytes] | None:
    return None if found is None else {n: Path(path).read_bytes() for n, path in found.items()}


def test_what_was_saved_is_loaded_also_by_another_process(store: Store) -> None:
    assert store.load(KEY) is None
    store.save(KEY, FILES)
    assert contents(store.load(KEY)) == FILES
    assert contents(Store(store.root).load(KEY)) == FILES
    assert [path.name for path in store.root.iterdir()] == [KEY], "nothing is left behind"


def test_everything_is_private(store: Store) -> None:
    os.umask(before := os.umask(0))
    os.umask(0)
    try:
        store.save(KEY, FILES)
    finally:
        os.umask(before)
    for path in (store.root, *store.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def truncate(entry: Path) -> None:
    (entry / "body.cubin").write_bytes(FILES["body.cubin"][:-1])


def flip(entry: Path) -> None:
    content = bytearray(FILES["body.cubin"])
    content[3] ^= 1
    (entry / "body.cubin").write_bytes(content)


def lose(entry: Path) -> None:
    (entry / "body.json").unlink()


def lose_the_list(entry: Path) -> None:
    (entry / "entry.json").unlink()


def cut_the_list(entry: Path) -> None:
    path = entry / "entry.json"
    path.write_bytes(path.read_bytes()[:40])


def change(entry: Path, **fields: object) -> None:
    path = entry / "entry.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def of_another_key(entry: Path) -> None:
    change(entry, key="ffff")


def of_another_format(entry: Path) -> None:
    change(entry, format=99)


def without_files(entry: Path) -> None:
    change(entry, files={})


def outside(entry: Path) -> None:
    (entry.parent / "body.cubin").write_bytes(b"x")
    change(entry, files={"../body.cubin": {"bytes": 1, "sha256": ""}})


def linked_file(entry: Path) -> None:
    elsewhere = entry.parent.parent / "elsewhere"
    (entry / "body.cubin").rename(elsewhere)
    (entry / "body.cubin").symlink_to(elsewhere)


def linked_folder(entry: Path) -> None:
    elsewhere = entry.parent.parent / "elsewhere"
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)


def open_file(entry: Path) -> None:
    (entry / "body.cubin").chmod(0o620)


def open_folder(entry: Path) -> None:
    entry.chmod(0o777)


def a_pipe(entry: Path) -> None:
    (entry / "body.cubin").unlink()
    os.mkfifo(entry / "body.cubin", 0o600)


def no_folder(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_text("a file")


def empty_folder(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "holds 16 bytes of body.cubin, not 17"),
        (flip, "holds a damaged body.cubin"),
        (lose, "lacks a file"),
        (lose_the_list, "lacks a file"),
        (cut_the_list, "has no readable entry.json"),
        (of_another_key, "is the entry of another key or format"),
        (of_another_format, "is the entry of another key or format"),
        (without_files, "names no files"),
        (outside, "names a file outside of its folder"),
        (linked_file, "Too many levels of symbolic links"),
        (linked_folder, "is a link or of another kind"),
        (open_file, "is open to others (mode 0620)"),
        (open_folder, "is open to others (mode 0777)"),
        (a_pipe, "is a link or of another kind"),
        (no_folder, "is a link or of another kind"),
        (empty_folder, "lacks a file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_as_it_was_written_is_said_not_used_and_replaced(
    store: Store, harm: Callable[[Path], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(KEY, FILES)
    harm(store.root / KEY)
    assert store.load(KEY) is None
    (record,) = caplog.records
    assert said in record.getMessage() and str(store.root / KEY) in record.getMessage()
    store.save(KEY, FILES)
    assert contents(store.load(KEY)) == FILES
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == [KEY]


def test_another_users_entry_is_not_used(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(KEY, FILES)
    mine = os.geteuid()
    monkeypatch.setattr(artefacts.os, "geteuid", lambda: mine + 1)
    assert store.load(KEY) is None
    assert f"belongs to user {mine}, this is user {mine + 1}" in caplog.text
    with pytest.raises(PermissionError, match="belongs to user"):
        Store(store.root)


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_is_not_ours_alone_is_refused(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "artefacts"
    if kind == "open":
        root.mkdir()
        root.chmod(0o770)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(tmp_path / "elsewhere")
    else:
        root.write_text("")
    with pytest.raises(PermissionError, match=r"artefacts is (open to others|a link)"):
        Store(root)


def test_where_it_lies_and_how_it_is_switched_off(
    tmp_path: Path, environ: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    def found() -> Store | None:
        artefacts.store.cache_clear()
        return artefacts.store()

    try:
        environ(ARCHKEY_CACHE_DIR=str(tmp_path))
        store = found()
        assert store is not None and store.root == tmp_path / "artefacts"
        store.root.chmod(0o755)
        assert found() is None and artefacts.store() is None
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "is open to others" in record.getMessage()
        environ(ARCHKEY_CACHE="0")
        assert found() is None
        assert len(caplog.records) == 1
    finally:
        artefacts.store.cache_clear()


# ---- many at once


def _beat(root: str, number: int) -> int:
    """Save, load, and now and then harm; every load is whole or nothing. Returns whole ones."""
    logging.getLogger("archkey").setLevel(logging.CRITICAL)
    store, whole = Store(Path(root)), 0
    for step in range(60):
        store.save(KEY, {name: content * 1000 for name, content in FILES.items()})
        found = store.load(KEY)
        if found is not None:
            try:
                read = contents(found)
            except FileNotFoundError:  # harmed and replaced meanwhile
                continue
            assert read == {name: content * 1000 for name, content in FILES.items()}
            whole += 1
        if number == 0 and step % 5 == 0:
            try:
                os.truncate(store.root / KEY / "entry.json", 10)
            except FileNotFoundError:
                continue
    return whole


def test_many_processes_never_see_half_of_an_entry(tmp_path: Path) -> None:
    root = str(tmp_path / "artefacts")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        whole = pool.starmap(_beat, [(root, number) for number in range(4)])
    assert min(whole) > 10
    left = {path.name for path in Path(root).iterdir()}
    assert left == {KEY}


def test_one_builds_while_others_wait(store: Store) -> None:
    """Keys of other files do not wait."""
    turns: list[str] = []

    def other() -> None:
        with Store(store.root).alone("ab99"):
            turns.append("other")

    thread = threading.Thread(target=other)
    with store.alone("ab12"):
        thread.start()
        with store.alone("cd34"):
            turns.append("first")
        thread.join(0.2)
        assert turns == ["first"] and thread.is_alive()
    thread.join(10)
    assert turns == ["first", "other"]


@pytest.mark.parametrize("error", [NotImplementedError, PermissionError])
def test_where_nothing_can_be_locked_each_builds(
    error: type[Exception], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def refuse(*arguments: object, **options: object) -> None:
        raise error("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with store.alone(KEY):
        store.save(KEY, FILES)
    assert contents(store.load(KEY)) == FILES


def _die(root: str) -> None:
    """A process that ends in the middle of a save."""
    store = Store(Path(root))
    artefacts._write = lambda path, content: os._exit(9)
    store.save(KEY, FILES)


def test_a_process_that_dies_while_it_saves_leaves_no_entry(tmp_path: Path) -> None:
    root = tmp_path / "artefacts"
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(str(root),))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    store = Store(root)
    assert store.load(KEY) is None
    store.save(KEY, FILES)
    assert contents(store.load(KEY)) == FILES
