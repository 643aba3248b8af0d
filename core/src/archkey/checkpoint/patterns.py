# SPDX-License-Identifier: Apache-2.0
"""Patterns of module names, each kind with its producer's meaning, and spellings of a name.

    kind     matches                                    written by
    name     this module                                compressed-tensors
    glob     the whole name, `*` and `?` span dots      Quark; ModelOpt, if it has a wildcard
    regex    from the name's start, not to its end      Quark and compressed-tensors, after "re:"
    subtree  a run of whole components anywhere,        ModelOpt without wildcard; the lists of
             so the module and all below it             FP8 and of GPT-OSS, where `*` is a component

Sources. Regex by `re.match`, and exact names: vllm and sglang
`quantization/quark/utils.py:_is_equal_or_regex_match`, compressed-tensors
`utils/match.py:match_name`. Globs: Quark takes its `exclude` and `layer_quant_config` by fnmatch
(`--exclude_layers "*lm_head"`; vllm `quantization/quark/quark.py:_find_matched_config`), ModelOpt
likewise (vllm `quantization/modelopt.py:is_layer_excluded`). Whole components: sglang
`quantization/utils.py:_module_path_match`; a substring took `mlp.gate` for a part of
`mlp.gate_up_proj` (sglang#23467), and is not used here for any producer.

One module has several spellings, because a text model may lie inside a multimodal one. Engines
rewrite prefixes one by one (vllm#28072, sglang#38998); here it is one rule, `spellings`: a pattern
is tried against the name as it is in the files and against its other spellings.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from archkey.errors import CheckpointError

__all__ = ["TEXT_PREFIXES", "Matcher", "Pattern", "producer_pattern", "spellings"]

TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
"""Where the decoder layers lie: transformers 5, transformers 4 and vllm, text-only checkpoints."""

_HEADS = ("lm_head", "language_model.lm_head")


@dataclass(frozen=True)
class Pattern:
    """A pattern as its producer wrote it (`text`), with the `kind` above that it is of."""

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


def producer_pattern(text: str, otherwise: str) -> Pattern:
    """The pattern of an entry: a regex after "re:", or else of kind `otherwise`.

    CheckpointError for a regular expression that is none.
    """
    if not text.startswith("re:"):
        return Pattern(otherwise, text)
    try:
        re.compile(text.removeprefix("re:"))
    except re.error as error:
        raise CheckpointError(
            f"pattern {text!r}: what follows 're:' is no regular expression ({error})"
        ) from None
    return Pattern("regex", text)


def spellings(name: str) -> tuple[str, ...]:
    """`name` and the other names that the same module of a text model has; itself first.

    Only what lies in `layers.` below one of TEXT_PREFIXES, and the head, has others: a vision
    tower's `model.visual.blocks.0` and `mtp.layers.0` have none.
    """
    if name in _HEADS:
        return (name, *(head for head in _HEADS if head != name))
    for prefix in TEXT_PREFIXES:
        if name.startswith(f"{prefix}layers."):
            rest = name[len(prefix) :]
            return (name, *(other + rest for other in TEXT_PREFIXES if other != prefix))
    return (name,)


class Matcher:
    """Finds the first of many patterns that a name matches; both come by the thousand."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._position: dict[Pattern, int] = {}
        self._names: dict[str, Pattern] = {}
        self._paths: dict[str, Pattern] = {}
        self._rules: list[tuple[Pattern, re.Pattern[str]]] = []
        for pattern in patterns:
            if pattern in self._position:
                continue
            self._position[pattern] = len(self._position)
            wild = any(letter in pattern.text for letter in "*?[")
            if pattern.kind == "name" or (pattern.kind == "glob" and not wild):
                self._names[pattern.text] = pattern
            elif pattern.kind == "subtree" and not wild:
                self._paths[pattern.text.strip(".")] = pattern
            else:
                self._rules.append((pattern, re.compile(_regex(pattern))))
        self._ends: dict[str, set[int]] = {}  # last component of a path -> lengths of such paths
        for path in self._paths:
            *_, last = parts = path.split(".")
            self._ends.setdefault(last, set()).add(len(parts))

    def find(self, name: str) -> Pattern | None:
        """The first pattern, in the order given, that one of the name's spellings matches."""
        found = self.find_all(name)
        return min(found, key=self._position.__getitem__) if found else None

    def find_all(self, name: str) -> list[Pattern]:
        """All patterns that one of the name's spellings matches, in no order."""
        return [pattern for spelling in spellings(name) for pattern in self._as_spelt(spelling)]

    def _as_spelt(self, name: str) -> list[Pattern]:
        found = [pattern for pattern, rule in self._rules if rule.match(name)]
        if name in self._names:
            found.append(self._names[name])
        parts = name.split(".")
        for end, last in enumerate(parts, 1):
            for length in self._ends.get(last, ()):
                path = self._paths.get(".".join(parts[max(end - length, 0) : end]))
                if path is not None:
                    found.append(path)
        return found


def _regex(pattern: Pattern) -> str:
    """What `re.match` decides for a glob, a regex or a subtree with wildcards."""
    if pattern.kind == "glob":
        return fnmatch.translate(pattern.text)
    if pattern.kind == "subtree":
        path = re.escape(pattern.text).replace(r"\*", "[^.]*").replace(r"\?", "[^.]")
        return rf"(?:.*\.)?{path}(?:\..*)?$"
    return pattern.text.removeprefix("re:")
