# SPDX-License-Identifier: Apache-2.0
"""`archkey new-plugin`: what it writes is lintable, installable and right; what it refuses.

tests/packaging/test_vendor.py installs it from its wheel.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import archkey
from archkey import scaffold
from archkey.cli import cli
from archkey.conformance.case import Case, Maker
from archkey.conformance.cases import cases_of
from archkey.conformance.cases.rmsnorm.models import norm, qk_norm
from archkey.conformance.judge import judge
from archkey.errors import PluginError, TargetError
from archkey.ops import OPERATORS
from archkey.plugins import Found
from archkey.scaffold import plan, render, write

NAMES = ("acme_x1", "rocm_gfx1201", "cuda_sm90.acme", "longvendorname_accelerator12")


def run(*arguments: str, code: int = 0) -> Result:
    """The command; it must end with exit `code`."""
    result = CliRunner().invoke(cli, ["new-plugin", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# ---- names


@pytest.mark.parametrize(
    ("text", "name", "package", "layers"),
    [
        ("acme_x1", "acme_x1", "archkey_acme_x1", ("every", "target", "probe")),
        ("gfx1201", "rocm_gfx1201", "archkey_rocm_gfx1201", ("every", "target")),
        ("12.0", "cuda_sm120", "archkey_cuda_sm120", ("every", "target")),
        ("cuda_sm90.acme", "cuda_sm90.acme", "archkey_cuda_sm90_acme", ("every", "variant")),
        ("acme_x1.b_2", "acme_x1.b_2", "archkey_acme_x1_b_2", ("every", "variant")),
    ],
)
def test_names(text: str, name: str, package: str, layers: tuple[str, ...]) -> None:
    found = plan(text, ())
    assert (found.name, found.package, found.layers) == (name, package, layers)
    assert found.distribution == package.replace("_", "-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acme", "no target is named 'acme'; .* or PLATFORM_ARCH of another vendor"),
        ("cud_sm90", "did you mean 'cuda_sm90'"),
        ("cuda_sm99", "no nvidia architecture known here"),
        ("cuda_sm90.", "a variant is a word"),
        ("cuda_sm90.a.b", "a variant is a word such as 'acme', found 'a.b'"),
        ("cuda_sm90.3x", "a variant is a word"),
        ("sm_90a", "named by its architecture, which is 'cuda_sm90'"),
        ("acme_x1_", "makes no name of a package"),
        ("../x_1", "no target is named"),
    ],
)
def test_bad_names(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        plan(text, ())


def test_a_name_that_is_taken() -> None:
    installed = [Found("acme_x1", "acme.plugin", "acme", "3.1")]
    with pytest.raises(PluginError, match=r"acme 3.1 has the name 'acme_x1'.*'acme_x1.acme'"):
        plan("ACME_x1", installed)
    assert plan("acme_x1.two", installed).name == "acme_x1.two"
    assert "archkey 0.1.0 has the name 'cpu'" in run("cpu", code=2).stderr


# ---- the folder


def test_it_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    document = json.loads(run("acme_x1", "--output", str(folder), "--json").stdout)
    assert set(document["files"]) == tree(folder)
    assert {"LICENSE", ".git"}.isdisjoint(document["files"])
    assert document["next"] == [
        f"pip install -e '{folder}[exam]'",
        "archkey explain rmsnorm --target acme_x1",
        "archkey check acme_x1",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_it_goes_beside_you_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = run("acme_x1").stdout
    assert "  pip install -e './archkey-acme-x1[exam]'" in out
    assert (tmp_path / "archkey-acme-x1/src/archkey_acme_x1/plugin.py").is_file()
    assert max(map(len, out.splitlines())) <= 80


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    run("acme_x1", "-o", str(tmp_path))
    assert "pyproject.toml" in tree(tmp_path)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    assert "a folder that is not empty" in run("acme_x1", "-o", str(tmp_path), code=2).stderr
    assert (
        "something that is no folder"
        in run("acme_x1", "-o", str(tmp_path / "notes"), code=2).stderr
    )
    assert tree(tmp_path) == {"notes"} and (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("folder", "found"), [("/proc/mine", "/proc"), ("/nowhere/at/all/mine", "no folder /nowhere")]
)
def test_a_folder_that_cannot_be_written(folder: str, found: str) -> None:
    message = run("acme_x1", "-o", folder, code=2).stderr
    assert found in message and "Nothing was written" in message


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a/b.py": "", "c.py": ""}
    written = Path.write_text

    def interrupted(self: Path, text: str) -> int:
        if self.name == "c.py":
            raise KeyboardInterrupt
        return written(self, text)

    monkeypatch.setattr(scaffold.Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(files, tmp_path / "mine")
    assert not [*tmp_path.iterdir()]


# ---- what is in it


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a distribution."""
    folder = tmp_path_factory.mktemp("new") / "it"
    write(render(plan(request.param, ())), folder)
    return folder


def tool(written: Path, *command: str, **environ: str) -> None:
    """Run a linter in the distribution, with its own settings."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=written,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_clean(written: Path) -> None:
    tool(written, "ruff", "check", "--no-cache", ".")
    tool(written, "ruff", "format", "--no-cache", "--check", ".")
    assert not [p for p in tree(written) if "$" in (written / p).read_text() + p]


@pytest.mark.slow
def test_its_types_are_right(
    written: Path, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = f"--cache-dir={tmp_path_factory.getbasetemp() / 'mypy'}"  # torch is read once
    tool(written, "mypy", "--follow-imports=silent", cache, MYPYPATH=str(root / "core/src"))


def test_its_metadata(written: Path) -> None:
    text = (written / "pyproject.toml").read_text()
    (package,) = [p.name for p in (written / "src").iterdir()]
    assert f'name = "{package.replace("_", "-")}"' in text
    assert 'dependencies = ["archkey>=0.1,<0.2"]' in text
    assert f'= "{package}.plugin"' in text.partition('[project.entry-points."archkey.plugins"]')[2]
    has_probe = (written / "src" / package / "probe.py").is_file()
    assert (f'= "{package}.probe:devices"' in text) == has_probe


# ---- its kernel is right


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """acme_x1 and cuda_sm90.acme, laid out on sys.path as pip would."""
    site = tmp_path_factory.mktemp("site")
    for name in ("acme_x1", "cuda_sm90.acme"):
        made = plan(name, ())
        info = f"{made.package}-0.1.0.dist-info"
        files = {p.removeprefix("src/"): t for p, t in render(made).items() if p.startswith("src")}
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {made.distribution}\n"
        files[f"{info}/entry_points.txt"] = (
            f"[archkey.plugins]\n{made.name} = {made.package}.plugin\n"
        )
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(site))


def call(about: str, **changes: Any) -> Case:
    """rmsnorm of what its kernel's conditions let through; all tensors may be given."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        given = {"x": make.randn(5, 96, dtype=torch.float32), "eps": 1e-5}
        for name, value in changes.items():
            given[name] = value(make) if callable(value) else value
        given.setdefault("weight", make.randn(given["x"].shape[-1], dtype=torch.float32))
        return given

    return Case("rmsnorm", about, "", inputs)


def empty(make: Maker, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=make.device)


ROW = (
    norm("rmsnorm", 2, 16384, dtype=torch.float16),
    norm("rmsnorm", 3, 111, weight_bias=1.0, dtype=torch.float32),
    call("rounded before the weight", x=lambda m: m.randn(5, 96, dtype=torch.float16),
         out=lambda m: empty(m, 5, 96, dtype=torch.float32), cast_before_weight=True),
    call("mixed dtypes", x=lambda m: m.randn(5, 96, dtype=torch.float16),
         weight=lambda m: m.randn(96, dtype=torch.bfloat16),
         out=lambda m: empty(m, 5, 96, dtype=torch.float32)),
    call("a slice of wider rows, into another",
         x=lambda m: m.randn(5, 200, dtype=torch.float32)[:, 3:99],
         out=lambda m: empty(m, 5, 101, dtype=torch.float32)[:, :96]),
    call("heads, evenly spaced", x=lambda m: m.randn(5, 4, 50, dtype=torch.float32)[..., :33],
         out=lambda m: empty(m, 5, 4, 33, dtype=torch.float32)),
    call("one head of several", x=lambda m: m.randn(5, 4, 32, dtype=torch.float32)[:, 1:2]),
    call("one row for all tokens", x=lambda m: m.randn(1, 64, dtype=torch.float32).expand(7, 64)),
    call("rows past element 2^31", x=lambda m: m.far(m.randn(3, 64, dtype=torch.float16))),
    call("no token", x=lambda m: m.randn(0, 64, dtype=torch.float32)),
    call("width of one", x=lambda m: m.randn(5, 1, dtype=torch.float32)),
)  # fmt: skip
REST = (
    norm("rmsnorm", 2, 16385, dtype=torch.float32),
    call("heads, not evenly spaced", x=lambda m: m.randn(5, 4, 32, dtype=torch.float32)[:, :3]),
    norm("fused_add_rmsnorm", 5, 2304, dtype=torch.float32),
    qk_norm(3, 1536, 512, 64, dtype=torch.float32),
)


@pytest.mark.parametrize("name", ["acme_x1", "cuda_sm90.acme"])
@pytest.mark.parametrize("case", [*ROW, *REST], ids=lambda case: f"{case.operator} {case.name}")
def test_its_kernels_agree_with_the_reference(installed: None, name: str, case: Case) -> None:
    target = name.partition(".")[0]
    result = judge(archkey.open(target), case, level="interpreted", runs=2)
    assert result.kernel == (f"{name}:row" if case in ROW else f"{target}:triton")
    assert result.passed, result


# numpy, under Triton's interpreter, warns of the NaN that a case is about.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("operator", ["rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm"])
def test_its_kernels_pass_every_edge(installed: None, operator: str) -> None:
    session = archkey.open("acme_x1")
    for case in cases_of(OPERATORS[operator]):
        if case.edge:
            result = judge(session, case, level="interpreted")
            assert result.passed, result
