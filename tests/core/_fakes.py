# SPDX-License-Identifier: Apache-2.0
"""Hardware and plugins that nobody has, for tests of the core.

World        real distributions (dist-info and modules) in a folder on sys.path
card         a device, as a driver would report it
kernel       a Kernel whose builder is in this module
session      a Session of a device with exactly these kernels
TOY          a vendor's own operator
make, ran    a session of it with the torch reference behind; who ran
alone        a fixture: nothing of another test
Spy          a session that keeps what an operator would launch
"""

from __future__ import annotations

import importlib
import itertools
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

import archkey
from archkey.capabilities import Capability
from archkey.kernel import Kernel, Run, resolve
from archkey.ops import Operator
from archkey.ops._contract import SESSIONS, public
from archkey.plugins import DEFAULT, Found, Loaded, Plugin, discover, load
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import Settings, settings
from archkey.target import Target

# ---- distributions

_WORLDS = itertools.count()

HEAD = """
import archkey
from archkey.capabilities import Capability
from archkey.conditions import at_least, at_most, is_, multiple_of, one_of
from archkey.kernel import Kernel
from archkey.requirements import Requirement
from archkey.tuning import Row, Table

ARCHKEY_API = (1, 1)
"""


def kernels(*lines: str) -> str:
    """The source of a hook that gives these kernels, each written as `Kernel(...)` takes it."""
    body = "\n".join(f"    yield Kernel({line})" for line in lines)
    return f"@archkey.hookimpl\ndef archkey_kernels(target):\n{body}\n"


def hook(body: str, name: str = "archkey_kernels", arguments: str = "target") -> str:
    """The source of a hook with this body."""
    return f"@archkey.hookimpl\ndef {name}({arguments}):\n    {body}\n"


CAPABILITY = 'Capability("{}", {}, "sheet", "r")'


def fast(operator: str = "rmsnorm", name: str = "fast", rest: str = "") -> str:
    """One line for `kernels`."""
    return f'"{operator}", "{name}", "{__name__}:build"{", " + rest if rest else ""}'


class World:
    """Distributions installed in a folder of their own, besides archkey's `cpu` plugin."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.prefix = f"fake{next(_WORLDS)}_"  # modules stay in sys.modules: no name is used twice
        self.distributions: set[str] = set()
        monkeypatch.syspath_prepend(root)

    def install(
        self,
        entry: str,
        source: str,
        *,
        dist: str | None = None,
        version: str = "1.0",
        head: str = HEAD,
    ) -> str:
        """Install a distribution with one entry point; returns the name of its module."""
        dist = dist or "fake-" + entry.replace("_", "-").replace(".", "-")
        module = self.prefix + dist.replace("-", "_")
        (self.root / f"{module}.py").write_text(head + textwrap.dedent(source))
        info = self.root / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[archkey.plugins]\n{entry} = {module}\n")
        importlib.invalidate_caches()
        self.distributions.add(dist)
        return module

    def found(self) -> list[Found]:
        """What is installed here, found in the way archkey finds it."""
        return [f for f in discover() if f.distribution in self.distributions or f.name == DEFAULT]

    def load(self, target: str, **settings: Any) -> Loaded:
        """Load plugins for a target."""
        return load(Target.parse(target), Settings(**settings), self.found())

    def session(self, target: str, **settings: Any) -> Session:
        """A session of a pretended device with what is installed here."""
        loaded = self.load(target, **settings)
        return Session(card(target, source="pretend"), Settings(**settings), loaded=loaded)

    def state(self, target: str, entry: str, **settings: Any) -> tuple[str, str]:
        """(state, reason) of an entry on a target."""
        found = [e for e in self.load(target, **settings).report if e.found.name == entry]
        assert len(found) == 1
        return found[0].state.value, found[0].reason


# ---- devices and kernels


def card(target: str = "cuda_sm90", index: int = 0, source: str = "nvml", **facts: Any) -> Device:
    """A device as the driver would report it."""
    return Device(Target.parse(target), index=index, name=f"fake {target}", source=source, **facts)


def kernel(
    name: str = "fast", operator: str = "rmsnorm", build: str = "build", **data: Any
) -> Kernel:
    """A Kernel of a plugin called "fake"."""
    data.setdefault("plugin", "fake")
    return Kernel(operator, name, f"{__name__}:{build}", **data)


def plugin(
    *given: Kernel,
    name: str = "fake",
    home: str = "cuda_sm90",
    capabilities: Iterable[Capability] = (),
    operators: Iterable[Operator] = (),
    version: str = "1.0",
) -> Plugin:
    """A loaded plugin."""
    parsed, facts, known = Target.parse(home), tuple(capabilities), tuple(operators)
    return Plugin(name, parsed, f"fake-{name}", version, facts, given, known)


def session(
    *given: Kernel, device: Device | None = None, settings: Settings | None = None, **rest: Any
) -> Session:
    """A session with these kernels, of a plugin at home on the device, in this order."""
    device = device or card()
    own = plugin(*given, home=device.target.key, operators=(TOY,))
    return Session(device, settings or Settings(), loaded=Loaded((own,), ()), **rest)


def last_resort(*operators: str) -> Plugin:
    """The `cpu` plugin, as every target has it."""
    listed = [kernel("torch", operator, plugin="cpu") for operator in operators or ("toy_op",)]
    return plugin(*listed, name="cpu", home="cpu")


def capability(name: str, value: Any) -> Capability:
    """A fact from a fake data sheet."""
    return Capability(name, value, "fake data sheet", "because the test says so")


# ---- an operator of a vendor


class Toy(NamedTuple):
    """The operator of the tests: it does nothing."""

    dtype: str = "bfloat16"
    width: int = 128
    operator: str = "toy_op"


@public
def toy_op(session: Session, x: Any) -> Any:
    """Call the kernel with x as its only output."""
    session.launcher(Toy())(x)
    return x


TOY = Operator(
    name="toy_op",
    family="toy",
    problem=Toy,
    inputs=(),
    outputs=("x",),
    reference=f"{__name__}:toy_op",
    function=f"{__name__}:toy_op",
    examples=MappingProxyType({"one": Toy()}),
)


FAST, SLOW = kernel("fast", "toy_op"), kernel("slow", "toy_op")


def make(*kernels: Kernel, config: Settings | None = None, **rest: Any) -> Session:
    """A session of a card with these kernels, and the torch reference behind them."""
    loaded = Loaded((plugin(*kernels, operators=(TOY,)), last_resort()), ())
    return Session(card(), config or Settings(), loaded=loaded, **rest)


def ran(session: Session, problem: Toy | None = None) -> str:
    """Name of the kernel that a call of the problem runs."""
    return session.launcher(problem or Toy())()  # type: ignore[return-value]


# ---- builders

BUILT: list[str] = []
"""Names of the kernels that were built, in order; clear it before use."""


def build(problem: Any, build: Any) -> Run:
    """A kernel that returns its own name when it runs, so that tests see who ran."""
    name = build.kernel.name
    BUILT.append(name)
    return lambda *arguments: name


def build_slowly(problem: Any, build: Any) -> Run:
    """Long enough for every other thread to arrive."""
    time.sleep(0.05)
    return globals()["build"](problem, build)  # type: ignore[no-any-return]


BUILDING = threading.Event()
GO_ON = threading.Event()


def build_when_told(problem: Any, build: Any) -> Run:
    """Sets BUILDING, then waits for GO_ON."""
    BUILDING.set()
    assert GO_ON.wait(5)
    return globals()["build"](problem, build)  # type: ignore[no-any-return]


def build_raises(problem: Any, build: Any) -> Run:
    """A kernel whose code does not work here."""
    raise OSError("libfast.so.3 is missing")


def build_fails_for_wide(problem: Any, build: Any) -> Run:
    """Out of shared memory for wide problems, fine for others."""
    if problem.width > 1000:
        raise MemoryError("out of shared memory")
    return globals()["build"](problem, build)  # type: ignore[no-any-return]


def build_exits(problem: Any, build: Any) -> Run:
    """A kernel that wants to end the process."""
    raise SystemExit(3)


def build_none(problem: Any, build: Any) -> Any:
    """A builder that forgets its return."""


# ---- a fixture: import it as `from ... import alone as alone`


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No session, setting or built kernel of another test."""
    before = dict(SESSIONS)
    SESSIONS.clear()
    BUILT.clear()
    BUILDING.clear()
    GO_ON.clear()
    settings.cache_clear()
    yield
    settings.cache_clear()
    SESSIONS.clear()
    SESSIONS.update(before)


class Spy:
    """A session of any device that keeps what would be launched, and launches nothing.

    Called, it is `operator`'s public function on that session.
    """

    def __init__(self, operator: Operator, target: str | Session) -> None:
        self.operator = operator
        self.session = archkey.open(target) if isinstance(target, str) else target
        self.problem: Any = None
        self.arguments: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def launcher(self, problem: Any) -> Any:
        self.problem = problem
        names = (*self.operator.inputs, *self.operator.outputs)

        def run(*arguments: Any) -> None:
            self.arguments = dict(zip(names, arguments, strict=True))

        return run

    def __call__(self, **call: Any) -> Any:
        return resolve(self.operator.function).__wrapped__(self, **call)
