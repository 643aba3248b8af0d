# SPDX-License-Identifier: Apache-2.0
"""Environment variables, and the messages of all errors."""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Iterator

import pytest
from tests.core._fakes import Toy, kernel, session

from archkey import errors
from archkey.conditions import is_
from archkey.errors import SettingError, TargetError, UnknownName, Unsupported, describe, nearest
from archkey.settings import Settings, settings
from archkey.target import Target


@pytest.fixture
def fresh() -> Iterator[None]:
    """The environment is read again, and the logger's level is put back."""
    log = logging.getLogger("archkey")
    level = log.level
    settings.cache_clear()
    yield
    settings.cache_clear()
    log.setLevel(level)


def read(**variables: str) -> Settings:
    return Settings.from_environ({f"ARCHKEY_{name}": text for name, text in variables.items()})


def test_an_empty_environment_asks_for_nothing() -> None:
    assert Settings.from_environ({"PATH": "/bin", "ARCH": "x"}) == Settings()


def test_all_variables() -> None:
    found = read(
        TARGET="cuda_sm90",
        PLUGINS=" cuda_sm90.acme, cuda_sm90 ,,",
        DISABLE_PLUGINS="cuda_sm90.bad",
        OVERRIDE_RMSNORM="torch",
        OVERRIDE_MLA_DECODE="cuda_sm90:triton",
        STRICT="Yes",
        VALIDATE="1",
        LOGLEVEL="debug",
        CACHE_DIR="/var/cache/archkey",
        CACHE="off",
    )
    assert (found.cache_dir, found.cache) == ("/var/cache/archkey", False)
    assert found.target == "cuda_sm90"
    assert found.plugins == ("cuda_sm90.acme", "cuda_sm90")
    assert found.disable_plugins == ("cuda_sm90.bad",)
    assert dict(found.override) == {"rmsnorm": "torch", "mla_decode": "cuda_sm90:triton"}
    assert found.strict and found.validate
    assert found.loglevel == "DEBUG"


def test_a_variable_set_to_nothing_is_as_good_as_not_set() -> None:
    assert (
        read(TARGET="", PLUGINS=" , ", STRICT="", LOGLEVEL=" ", OVERRIDE_RMSNORM="") == Settings()
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STRICKT", "ARCHKEY_STRICT"),
        ("PLUGIN", "ARCHKEY_PLUGINS"),
        ("OVERIDE_RMSNORM", "ARCHKEY_OVERRIDE_<OPERATOR>"),
    ],
)
def test_a_misspelt_variable_is_an_error_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"ARCHKEY_{name};.*'{meant}'"):
        read(**{name: "1"})


def test_a_boolean_that_is_neither_yes_nor_no() -> None:
    with pytest.raises(SettingError, match="ARCHKEY_STRICT='maybe' .*use 1 or 0"):
        read(STRICT="maybe")


def test_an_unknown_level() -> None:
    with pytest.raises(SettingError, match="ARCHKEY_LOGLEVEL='loud'; use debug"):
        read(LOGLEVEL="loud")


def test_settings_are_read_once(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHKEY_STRICT", "1")
    assert settings().strict
    monkeypatch.setenv("ARCHKEY_STRICT", "0")
    assert settings().strict
    settings.cache_clear()
    assert not settings().strict


def test_the_level_of_an_application_is_left_alone(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARCHKEY_LOGLEVEL", raising=False)
    log = logging.getLogger("archkey")
    log.setLevel(logging.DEBUG)
    settings()
    assert log.level == logging.DEBUG
    settings.cache_clear()
    monkeypatch.setenv("ARCHKEY_LOGLEVEL", "error")
    settings()
    assert log.level == logging.ERROR


# ---- errors


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    classes = {
        name: thing
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, errors.ArchkeyError)
    }
    assert set(classes) <= set(errors.__all__)
    drawn = errors.__doc__ or ""
    for name, thing in classes.items():
        assert f" {name} " in drawn or f"    {name}\n" in drawn
        builtin = next(base for base in thing.__mro__ if base.__module__ == "builtins")
        if builtin is not Exception:
            line = drawn[drawn.index(f" {name} ") :].split("\n    ├")[0].split("\n    └")[0]
            assert f"(also a {builtin.__name__})" in line.replace("(also an ", "(also a ")


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(TargetError, match="cuda_sm90"):
        Target.parse("cud_sm90")


def test_an_unknown_name_is_a_key_error_with_a_readable_message() -> None:
    error = UnknownName("operator", "rmsnrom", ["rmsnorm", "mla_decode"], "See the list.")
    assert str(error) == "unknown operator 'rmsnrom'; did you mean 'rmsnorm'. See the list."
    assert isinstance(error, KeyError)  # so that Mapping.get works on what raises it


def test_a_huge_name_does_not_make_a_huge_message() -> None:
    assert len(str(UnknownName("kernel", "x" * 1_000_000, ["fast"]))) < 300


def test_nothing_near_lists_all() -> None:
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "known: none"


def test_errors_cross_a_process_border() -> None:
    """A worker of multiprocessing raises by pickling."""
    told = UnknownName("operator", "rmsnrom", ["rmsnorm"], "See the list.")
    back = pickle.loads(pickle.dumps(told))
    assert (str(back), back.kind, back.known) == (str(told), told.kind, told.known)

    refusing = session(kernel(operator="toy_op", needs=(is_("tma", True),)))
    with pytest.raises(Unsupported) as caught:
        refusing.plan(Toy())
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value)
    assert back.decision == caught.value.decision is not None


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_describe_survives_what_foreign_code_raises() -> None:
    assert describe(OSError("gone")) == "OSError: gone"
    assert describe(Unreadable()) == "Unreadable (its message cannot be read)"
    assert len(describe(OSError("x" * 10_000_000))) < 1100
