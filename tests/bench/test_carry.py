# SPDX-License-Identifier: Apache-2.0
"""What makes the peers' wheels smaller: device code of one architecture, excerpts, repacking."""

from __future__ import annotations

import importlib.metadata
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.device import carry_peers
from tests.device.peers import fatbin, table, wheels

CODE = b"\x5a" * 24


def entry(kind: int, architecture: int, payload: bytes = CODE) -> bytes:
    head = bytearray(64)
    struct.pack_into("<HHIQ", head, 0, kind, 0x101, len(head), len(payload))
    struct.pack_into("<I", head, 28, architecture)
    return bytes(head) + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(body)) + body


def elf(**content: bytes) -> bytearray:
    """An ELF file with the named sections, `nv_fatbin` for `.nv_fatbin`."""
    names, rows, body = bytearray(b"\0"), [bytes(64)], bytearray(64)
    for name, data in {**content, "shstrtab": b""}.items():
        at = len(names)
        names += b"." + name.encode() + b"\0"
        data = bytes(names) if name == "shstrtab" else data
        rows.append(struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, len(body), len(data), 0, 0, 8, 0))
        body += data
    body[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", body, 0x28, len(body))
    struct.pack_into("<HHH", body, 0x3A, 64, len(rows), len(rows) - 1)
    return body + b"".join(rows)


def payloads(image: bytearray) -> list[tuple[int, int, bool]]:
    """Kind, architecture and whether the code is still there, in order."""
    start, size = fatbin.sections(image)[".nv_fatbin"]
    return [
        (e.kind, e.architecture, bytes(image[e.at : e.at + e.size]) == CODE)
        for entries in fatbin.containers(image, start, size)
        for e in entries
    ]


def test_machine_code_of_other_architectures_becomes_zeros() -> None:
    first = container(entry(fatbin.ELF, 80), entry(fatbin.ELF, 90), entry(fatbin.PTX, 90))
    second = container(entry(fatbin.ELF, 100), entry(fatbin.PTX, 90))
    image = elf(text=CODE, nv_fatbin=first + bytes(8) + second, data=CODE)
    before = bytes(image)
    done = fatbin.blank_other(image, 90)
    assert payloads(image) == [
        (fatbin.ELF, 80, False),
        (fatbin.ELF, 90, True),
        (fatbin.PTX, 90, False),  # there is machine code beside it
        (fatbin.ELF, 100, False),
        (fatbin.PTX, 90, True),  # there is none
    ]
    assert done == fatbin.Blanked(blanked=3 * len(CODE), kept=2 * len(CODE))
    assert len(image) == len(before)
    changed = sum(a != b for a, b in zip(image, before, strict=True))
    assert changed == 3 * len(CODE), "headers and other sections stay"


def test_a_file_without_device_code_stays() -> None:
    image = elf(text=CODE)
    before = bytes(image)
    assert fatbin.blank_other(image, 90) == fatbin.Blanked(0, 0)
    assert bytes(image) == before


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (bytearray(b"PK\x03\x04" + bytes(64)), "not a 64-bit little-endian ELF"),
        (elf(nv_fatbin=b"\x01" * 64), "no fatbin container at 0x40"),
    ],
    ids=["zip", "garbage"],
)
def test_what_is_not_understood_is_refused(image: bytearray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fatbin.blank_other(image, 90)


def test_excerpt_takes_definitions_and_the_imports_they_use() -> None:
    source = (
        "from __future__ import annotations\n"
        "import os.path\nimport numpy as np, heavy\nfrom enum import Enum, IntEnum\n"
        "LIMIT = np.pi\n"
        "class Mode(IntEnum):\n    A = 1\n"
        "def other():\n    return heavy.server()\n"
        "def where(mode: Mode):\n    return os.path.sep\n"
    )
    taken = wheels.excerpt(source, ("LIMIT", "Mode", "where"))
    assert taken == (
        "from __future__ import annotations\n"
        "import os.path\nimport numpy as np\nfrom enum import IntEnum\n"
        "LIMIT = np.pi\n\n"
        "class Mode(IntEnum):\n    A = 1\n\n"
        "def where(mode: Mode):\n    return os.path.sep\n"
    )
    with pytest.raises(ValueError, match="does not define gone"):
        wheels.excerpt(source, ("LIMIT", "gone"))


def sample(folder: Path) -> Path:
    """A wheel with two modules, a shared object, and more that nobody asks for."""
    image = elf(nv_fatbin=container(entry(fatbin.ELF, 80), entry(fatbin.ELF, 90)))
    path = folder / "peer-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("peer/kernel.py", "VALUE = 7\n")
        archive.writestr("peer/sub/server.py", "import nowhere\n")
        archive.writestr("peer/many.py", "import nowhere\ndef one():\n    return 1\n")
        archive.writestr("peer/code.so", bytes(image))
        archive.writestr("peer-1.2.dist-info/METADATA", "Name: peer\nVersion: 1.2\n")
        archive.writestr("peer-1.2.dist-info/RECORD", "")
    return path


def test_a_wheel_is_stripped_and_unpacks_to_what_imports(tmp_path: Path) -> None:
    content = wheels.strip(
        sample(tmp_path), ("peer/*", "!peer/sub/*"), {"peer/many.py": ("one",)}, 90
    )
    assert payloads(bytearray(content["peer/code.so"])) == [
        (fatbin.ELF, 80, False),
        (fatbin.ELF, 90, True),
    ]
    target, site = tmp_path / "small.whl", tmp_path / "site"
    assert wheels.write(target, content) == target.stat().st_size
    subprocess.run([sys.executable, "-m", "zipfile", "-e", target, site], check=True)
    files = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    modules = {"peer/kernel.py", "peer/many.py", "peer/code.so"}
    assert files == {*modules, "peer-1.2.dist-info/METADATA", "peer-1.2.dist-info/RECORD"}
    (found,) = importlib.metadata.distributions(path=[str(site)])
    assert (found.name, found.version) == ("peer", "1.2")
    assert {str(file) for file in found.files or ()} == files
    line = "import peer.kernel, peer.many; print(peer.kernel.VALUE + peer.many.one())"
    done = subprocess.run([sys.executable, "-c", line], cwd=site, capture_output=True, check=True)
    assert done.stdout.split() == [b"8"]


def test_archives_of_the_same_content_are_the_same(tmp_path: Path) -> None:
    content = {"b.py": b"1", "a.py": b"2", "p-1.dist-info/METADATA": b""}
    one, two = tmp_path / "one.whl", tmp_path / "two.whl"
    wheels.write(one, content)
    wheels.write(two, dict(reversed(content.items())))
    assert one.read_bytes() == two.read_bytes()


def test_the_last_pattern_that_matches_decides() -> None:
    names = ["p/a.py", "p/sub/b.py", "p/sub/c.py", "p/sub/", "q.txt"]
    patterns = ("p/*", "!p/sub/*", "p/sub/c*")
    assert wheels.chosen(names, patterns) == ["p/a.py", "p/sub/c.py"]


def test_a_pattern_that_matches_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing in the wheel matches 'peer/gone/\*'"):
        wheels.strip(sample(tmp_path), ("peer/*", "peer/gone/*"))


@pytest.fixture
def one_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table holds the sample wheel alone, and it is downloaded; the folder for archives."""
    sample(tmp_path)
    monkeypatch.setattr(table, "CARGO", (table.Cargo("peer", "peer", "1.2"),))
    return tmp_path / "out"


def carry(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["carry", str(out), "--wheels", str(out.parent), *more])
    carry_peers.main()


def test_archives_and_their_sizes(
    one_peer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carry(monkeypatch, one_peer)
    assert [p.name for p in one_peer.iterdir()] == ["peer-1.2-cp312-none-linux_x86_64.whl"]
    assert "MiB in all, of 40" in capsys.readouterr().out


def test_over_the_limit_nothing_changes(one_peer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="over the limit of 0.0001 MiB"):
        carry(monkeypatch, one_peer, "--limit", "0.0001")
    assert not list(one_peer.iterdir())


def test_names_bring_what_they_need() -> None:
    found = {cargo.name for cargo in table.with_needs(("sglang",))}
    assert found == {"sglang", "apache-tvm-ffi", "msgspec", "nvidia-ml-py"}
    everything = table.with_needs(())
    assert everything == [cargo for cargo in table.CARGO if not cargo.part]
    assert {"flashinfer", "idna"} < {c.name for c in table.with_needs(("flashinfer-sources",))}
    with pytest.raises(ValueError, match="unknown: sgl"):
        table.with_needs(("sgl",))


def test_a_part_has_an_archive_of_its_own(one_peer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = table.Cargo("peer-code", "peer", "1.2", take=("peer/code.so",), part=True)
    monkeypatch.setattr(table, "CARGO", (*table.CARGO, part))
    carry(monkeypatch, one_peer)
    carry(monkeypatch, one_peer, "--only", "peer-code")
    (whole, half) = sorted(one_peer.iterdir())
    assert half.name == "peer_code-1.2-cp312-none-linux_x86_64.whl"
    names = [set(zipfile.ZipFile(path).namelist()) for path in (whole, half)]
    assert names[0] & names[1] == {"peer/code.so"}


def test_needs_and_substitutes_exist() -> None:
    names = {cargo.name for cargo in table.CARGO}
    assert {need for cargo in table.CARGO for need in cargo.needs} <= names
    stubs = {path.name for path in carry_peers.STUBS.iterdir()}
    assert stubs == {cargo.name for cargo in table.CARGO if cargo.substitute}
