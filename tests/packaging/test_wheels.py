# SPDX-License-Identifier: Apache-2.0
"""Every wheel builds without a network and carries what it must."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from archkey.integrations.transformers import REQUIRES

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = {
    path.parent.name: path.parent
    for path in sorted([ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")])
}


def package(member: str) -> str:
    return "archkey" if member == "core" else f"archkey_{member}"


@pytest.fixture(scope="module", params=MEMBERS)
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel of one distribution, opened; named by its folder."""
    member: str = request.param
    folder = tmp_path_factory.mktemp(member)
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=MEMBERS[member], check=True, timeout=120)
    (path,) = folder.glob("*.whl")
    assert path.name == f"{package(member)}-0.1.0-py3-none-any.whl"
    return zipfile.Path(path)


def member_of(wheel: zipfile.Path) -> str:
    name = wheel.name.partition("-")[0]
    return "core" if name == "archkey" else name.removeprefix("archkey_")


def information(wheel: zipfile.Path) -> zipfile.Path:
    return wheel / f"{wheel.name.rpartition('-py3')[0]}.dist-info"


def requirements(wheel: zipfile.Path) -> list[Requirement]:
    metadata = email.message_from_string((information(wheel) / "METADATA").read_text())
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def test_it_requires_what_it_should(wheel: zipfile.Path) -> None:
    """A plugin: the core and nothing else. The core: each plugin as an extra, and no Triton."""
    rules = requirements(wheel)
    if member_of(wheel) != "core":
        (rule,) = rules
        assert str(rule) == "archkey<0.2,>=0.1"
        return
    always = {rule.name for rule in rules if rule.marker is None}
    named = {"torch", "pluggy", "packaging", "nvidia-ml-py", "click", "rich"}
    assert always == {*named, "platformdirs", "filelock"}
    for member in MEMBERS:
        if member != "core":
            extra = member.replace("_", "-")
            (rule,) = [r for r in rules if r.marker and r.marker.evaluate({"extra": extra})]
            assert str(rule).startswith(f"archkey-{extra}==0.1.*")
    (rule,) = [r for r in rules if r.marker and r.marker.evaluate({"extra": "transformers"})]
    assert str(rule).partition(";")[0] == str(Requirement(str(REQUIRES)))


def test_it_holds_the_source_and_no_more(wheel: zipfile.Path) -> None:
    source = MEMBERS[member_of(wheel)] / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = wheel.root.namelist()
    found = {name for name in names if ".dist-info/" not in name and not name.endswith("/")}
    assert found == expected
    assert f"{package(member_of(wheel))}/py.typed" in found


def test_it_carries_the_licence(wheel: zipfile.Path) -> None:
    """Each distribution has a copy: a link would dangle in its source archive."""
    carried = information(wheel) / "licenses" / "LICENSE"
    assert carried.read_text() == (ROOT / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0" in (information(wheel) / "METADATA").read_text()


def test_it_has_its_entry_points(wheel: zipfile.Path) -> None:
    text = (information(wheel) / "entry_points.txt").read_text()
    member = member_of(wheel)
    if member == "core":
        assert "archkey = archkey.cli:main" in text
        assert "cpu = archkey.reference.plugin" in text
    else:
        assert f"{member} = archkey_{member}.plugin" in text
    assert "[archkey.plugins]" in text
