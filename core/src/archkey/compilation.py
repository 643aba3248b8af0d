# SPDX-License-Identifier: Apache-2.0
"""From a body to machine code: Triton's compiler behind archkey's own store (`archkey.artefacts`).

What is launched is Triton's own CompiledKernel, made from the store's files where they are there:
then no compiler runs. Else Triton's `compile` runs, with a cache that is one private folder: its
code object gets a namespace of its own, in which `get_cache_manager` gives that folder. So Triton's
cache on disk, which neither checks what it reads nor is private, is neither read nor written, no
knob of Triton is set, and kernels that an engine compiles at the same time see nothing of it.
Triton's hooks see what they always see: `knobs.compilation.listener` is called for what was really
compiled, and not for what came from the store.

Its launcher, a C stub for each signature, is Triton's business and stays in Triton's cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import Any

from archkey import artefacts
from archkey._body import digest_of
from archkey.errors import ArchkeyError, Unsupported
from archkey.probe import Device
from archkey.target import Target

__all__ = ["Compiled", "Program", "compile_for", "to_compile"]

log = logging.getLogger("archkey")

_SCRATCH = "archkey-compile-"

# Environment variables that may reach machine code; Triton reads some in C++, some in Python.
_PREFIXES = ("TRITON_", "AMDGCN_", "DISABLE_", "ALLOW_", "LLVM_", "MLIR_", "NVPTX_", "PTXAS_")
_ELSEWHERE = {  # what they say is in the options, or is about where, when and who
    *("TRITON_INTERPRET", "TRITON_DEFAULT_FP_FUSION", "TRITON_PRINT_AUTOTUNING"),
    *("TRITON_HOME", "TRITON_CACHE_DIR", "TRITON_CACHE_MANAGER", "TRITON_REMOTE_CACHE_BACKEND"),
    *("TRITON_DUMP_DIR", "TRITON_OVERRIDE_DIR", "TRITON_CACHE_AUTOTUNING"),
}


@dataclass(frozen=True)
class Program:
    """One Triton body with all that decides its machine code.

    body       a `@triton.jit` function, or a `@gluon.jit` one, which no interpreter runs
    signature  its run-time parameters in order, with Triton's types: {"x": "*bf16", "T": "i32"};
               None for a tensor that is absent from this problem and always passed as None
    constants  its constexpr parameters; in the body they come after the run-time ones
    aligned    run-time parameters that are multiples of 16 (bytes of a pointer, or the number)
    options    compile options: num_warps, num_stages, launch_pdl, ...
    """

    body: Any
    signature: Mapping[str, str | None]
    constants: Mapping[str, Any]
    aligned: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """A Program after the compiler: machine code and what it takes.

    kind  "cubin" or "hsaco"; the artefact is Triton's own CompiledKernel
    """

    program: Program
    kernel: Any
    kind: str

    @property
    def binary(self) -> bytes:
        """The machine code: an ELF file for the target."""
        return bytes(self.kernel.asm[self.kind])

    @property
    def shared_memory_bytes(self) -> int:
        """Shared memory or LDS that one block takes."""
        return int(self.kernel.metadata.shared)


def compile_for(program: Program, device: Device) -> Compiled:
    """Machine code of a Triton or Gluon body for the target of `device`; needs no GPU.

    From the store if it is there, else compiled, and stored.
    """
    source, options = _source(program, device), _options(program)
    kernel = _compiled_kernel(source, device.target, options)
    return Compiled(program, kernel, "cubin" if device.target.platform == "cuda" else "hsaco")


def to_compile(program: Program, device: Device) -> str | None:
    """The store's key of `program` for `device` if it has yet to be compiled and will be kept.

    None if it is there, and where nothing is kept: no other process could help then.
    """
    store = _store()
    if store is None:
        return None
    key = _key(_source(program, device), device.target, _options(program))
    return key if store.load(key) is None else None


def _source(program: Program, device: Device) -> Any:
    """What Triton makes of a body before it compiles it."""
    if device.target.triton_backend is None:
        raise Unsupported(f"Triton has no backend for {device.target}")
    names = list(program.body.arg_names)
    expected = [*program.signature, *program.constants]
    if names != expected:
        raise ArchkeyError(f"{program.body.__name__} takes {names}, its Program gives {expected}")
    absent = {name: None for name, kind in program.signature.items() if kind is None}
    constants = {**absent, **program.constants}
    return _dialect(program.body)(
        program.body,
        {name: program.signature.get(name) or "constexpr" for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in sorted(program.aligned)},
    )


def _options(program: Program) -> dict[str, Any]:
    # Stated, since Triton's default is about to change and the choice changes numbers.
    return {"enable_fp_fusion": True, **program.options}


def _dialect(body: Any) -> Any:
    from triton.compiler import ASTSource

    if not body.is_gluon():
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def _compiled_kernel(source: Any, target: Target, options: Mapping[str, Any]) -> Any:
    """Triton's CompiledKernel. What raises is Triton's."""
    from triton.compiler import CompiledKernel

    key = _key(source, target, options)
    store = _store()
    if store is None:
        with TemporaryDirectory(prefix=_SCRATCH) as folder:
            return _compile(source, target, options, key, Path(folder))
    files = store.load(key)
    if files is None:
        # One compiles, and all others who want the same wait for it: ranks, and their workers.
        with store.alone(key):
            files = store.load(key)
            if files is None:
                with TemporaryDirectory(prefix=_SCRATCH) as folder:
                    made = _compile(source, target, options, key, Path(folder))
                    _keep(store, key, made.metadata_group)
                files = store.load(key)
                if files is None:  # such as on a full disk
                    return made
    return CompiledKernel(source, files, key)


def _store() -> artefacts.Store | None:
    """Where to look and to keep; None while somebody wants to see or change what compiles."""
    from triton import knobs

    wanted = knobs.compilation
    watched = (
        wanted.override
        or wanted.dump_ir
        or wanted.always_compile
        or wanted.instrumentation_mode
        or knobs.runtime.add_stages_inspection_hook
    )
    return None if watched else artefacts.store()


def _key(source: Any, target: Target, options: Mapping[str, Any]) -> str:
    """SHA-256 over all that decides the machine code, as hexadecimal digits.

    The architecture with its feature suffix, the compiler and its assembler, the body with all
    that it calls, types, constants, alignment, options, and Triton's knobs and environment
    variables.
    """
    gpu = _gpu(target)
    backend = _backend(gpu)
    constants = [[list(at), type(v).__name__, _text(v)] for at, v in source.constants.items()]
    facts = {
        "target": [str(target), repr(gpu)],
        "compiler": [_compiler(), backend.hash(), backend.parse_options(dict(options)).hash()],
        "body": [source.language.name, source.name, digest_of(source.fn)],
        "types": list(source.signature.items()),
        "constants": sorted(constants),
        "attributes": repr(sorted(source.attrs.items())),
        "options": sorted((name, repr(value)) for name, value in options.items()),
        "knobs": _knobs(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(_PREFIXES) and name not in _ELSEWHERE
        },
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _text(constant: Any) -> str:
    """A constant that is a body itself by its source, others as they are printed."""
    return digest_of(constant) if hasattr(constant, "cache_key") else str(constant)


def _gpu(target: Target) -> Any:
    from triton.backends.compiler import GPUTarget

    backend: Any = target.triton_backend
    return GPUTarget(*backend)


def _backend(gpu: Any) -> Any:
    from triton.compiler import make_backend

    return make_backend(gpu)


@functools.cache
def _compiler() -> list[str]:
    """Triton's version, a digest of its Python, and size and time of its library.

    Triton's own `triton_key` reads all of the library, most of a second in each process.
    """
    import triton
    from triton._C import libtriton

    root, digest = Path(triton.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    library = os.stat(libtriton.__file__)
    return [triton.__version__, digest.hexdigest(), f"{library.st_size} {library.st_mtime_ns}"]


def _knobs() -> dict[str, str]:
    """Triton's knobs that may reach machine code, as they are now: a program may set them, too."""
    from triton import knobs

    found = {"debug": str(knobs.runtime.debug)}
    for group in ("compilation", "language", "nvidia", "amd"):
        room = getattr(knobs, group)
        for name, knob in room.knob_descriptors.items():
            if type(knob) is not knobs.env_nvidia_tool:  # asking runs the tool; `hash` has ptxas's
                found[f"{group}.{name}"] = str(getattr(room, name))
    del found["language.default_fp_fusion"]  # the options say it
    return found


def _compile(
    source: Any, target: Target, options: Mapping[str, Any], key: str, folder: Path
) -> Any:
    """Triton's `compile`, which keeps what it makes in `folder`."""
    from triton.compiler import compiler

    names = vars(compiler) | {
        "get_cache_manager": lambda hashed: _Folder(folder),
        "get_cache_key": lambda *arguments, **named: key,
    }
    original: Any = compiler.compile
    own = FunctionType(original.__code__, names, original.__name__, original.__defaults__)
    return own(source, target=_gpu(target), options=dict(options))


class _Folder:
    """What Triton takes for its cache: a folder in which nothing is found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        """Write a stage's result; the path."""
        path = self._folder / filename
        path.write_bytes(data if isinstance(data, bytes) else str(data).encode())
        return str(path)

    def get_file(self, filename: str) -> str | None:
        """The path of what was put."""
        path = self._folder / filename
        return str(path) if path.exists() else None

    def get_group(self, filename: str) -> None:
        """No result of an earlier compilation."""

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """Triton's list of the files, which CompiledKernel has."""


def _keep(store: artefacts.Store, key: str, group: Mapping[str, str]) -> None:
    try:
        store.save(key, {name: Path(path).read_bytes() for name, path in group.items()})
    except OSError as error:
        log.warning("what was compiled could not be kept in %s: %s", store.root, error)
