# SPDX-License-Identifier: Apache-2.0
"""Bring the bench's peers to a GPU machine without network, as archives small enough to carry.

    python tests/device/carry_peers.py OUT_DIR [--only vllm --only fla ...] [--built DIR]
    # on that machine
    tests/device/run.sh OUT_DIR archkey bench ...

Downloads the exact wheels of tests/device/peers/table.py, keeps what the bench calls, puts small
modules in place of the servers' own (tests/device/peers/stubs), leaves device code of one
architecture, and writes wheels compressed with LZMA. What has to be compiled beforehand comes from
`--built`, which tests/device/build_peers.py fills.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `tests` importable

from tests.device.peers import table, wheels  # noqa: E402 (after the line above)

MIB = 2**20
STUBS = Path(__file__).parent / "peers/stubs"
WORK = ROOT / "build/peers"  # ignored by git


def stem(distribution: str) -> str:
    """A distribution's name as in the names of wheels."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


def download(cargo: table.Cargo, folder: Path) -> Path:
    """The wheel of `cargo` in `folder`, from the index unless it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{stem(cargo.distribution)}-{cargo.version}-*.whl"
    if not (there := sorted(folder.glob(pattern))):
        print(f"{cargo.name}: downloading {cargo.distribution} {cargo.version}", flush=True)
        line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        line += ["--dest", str(folder)]
        line += ["--only-binary", ":all:", "--python-version", table.PYTHON]
        line += [word for tag in table.PLATFORMS for word in ("--platform", tag)]
        done = subprocess.run([*line, f"{cargo.distribution}=={cargo.version}"])
        there = sorted(folder.glob(pattern))
        if done.returncode or not there:
            raise SystemExit(f"{cargo.name}: pip found no {pattern} (status {done.returncode})")
    return there[0]


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its path from there."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if "__pycache__" not in path.parts
    }


def members(cargo: table.Cargo, wheels_in: Path, built_in: Path) -> dict[str, bytes] | None:
    """What the archive of `cargo` holds; None if it is to be built and was not."""
    content: dict[str, bytes] = {}
    if cargo.from_source:
        content |= wheels.metadata_of(stem(cargo.distribution), cargo.version)
    else:
        wheel = download(cargo, wheels_in)
        content |= wheels.strip(wheel, cargo.take, cargo.excerpts, cargo.architecture)
    if cargo.part:
        content = {name: data for name, data in content.items() if ".dist-info/" not in name}
        content |= wheels.metadata_of(stem(cargo.name), cargo.version)
    if cargo.substitute:
        content |= files_under(STUBS / cargo.name)
    if cargo.built:
        built = files_under(built_in / cargo.name)
        if not built and cargo.from_source:
            return None
        print(f"{cargo.name}: {len(built)} compiled files from {built_in / cargo.name}", flush=True)
        content |= built
    return content


def pack(cargo: table.Cargo, content: dict[str, bytes], folder: Path) -> Path:
    """Write the archive of `cargo`."""
    started = time.monotonic()
    name = stem(cargo.name if cargo.part else cargo.distribution)
    target = folder / f"{name}-{cargo.version}-cp312-none-linux_x86_64.whl"
    raw = sum(map(len, content.values()))
    size = wheels.write(target, content)
    print(
        f"{cargo.name}: {len(content)} files, {raw / MIB:.1f} MiB -> {size / MIB:.2f} MiB"
        f" in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return target


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each archive in `folder`."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.whl"))}


def render(found: dict[str, int], limit: float) -> str:
    """The table of sizes, its last line the total beside the limit, in MiB."""
    rows = [f"{size / MIB:8.2f}  {name}" for name, size in found.items()]
    total = sum(found.values()) / MIB
    return "\n".join([*rows, f"{total:8.2f}  MiB in all, of {limit:g}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the archives")
    known = [cargo.name for cargo in table.CARGO]
    parser.add_argument("--only", action="append", default=[], choices=known, metavar="NAME")
    parser.add_argument("--wheels", type=Path, default=WORK / "wheels", help="downloads are kept")
    parser.add_argument("--built", type=Path, default=WORK / "built", help="compiled modules")
    parser.add_argument("--limit", type=float, default=40, help="MiB for everything in OUT_DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    missing = []
    with tempfile.TemporaryDirectory(dir=args.out) as half:
        for cargo in table.with_needs(tuple(args.only)):
            content = members(cargo, args.wheels, args.built)
            if content is None:
                missing.append(cargo.name)
                continue
            pack(cargo, content, Path(half))
        after = {**sizes(args.out), **sizes(Path(half))}
        print(render(after, args.limit))
        for name in missing:
            print(
                f"{name}: not carried, not built: python tests/device/build_peers.py {args.built}"
            )
        if sum(after.values()) > args.limit * MIB:
            raise SystemExit(
                f"over the limit of {args.limit:g} MiB: nothing was changed in {args.out}."
                " Carry fewer with --only, remove archives there, or raise --limit."
            )
        for name in sizes(Path(half)):
            (Path(half) / name).replace(args.out / name)


if __name__ == "__main__":
    main()
