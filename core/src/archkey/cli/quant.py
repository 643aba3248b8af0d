# SPDX-License-Identifier: Apache-2.0
"""`archkey quant explain`: what a quantised checkpoint is, module by module and by target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import archkey
from archkey.cli.output import emit, json_option
from archkey.plugins import DEFAULT, installed_targets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["command"]

_STYLES = {"native": "green", "emulated": "yellow", "unsupported": "red"}


@click.group(short_help="Explain quantised checkpoints.")
def command() -> None:
    """Read quantised checkpoints: what their description means for each module.

    \b
    archkey quant explain MODEL                    a folder, or its config.json
    archkey quant explain MODEL --weights MODEL    compared with the files' headers
    """


@command.command(short_help="Show scheme, storage and targets of each module.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    *("--target", "-t", "targets"),
    metavar="TARGET",
    multiple=True,
    help="Only this; repeatable. Default: those of the installed plugins.",
)
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Ranks.")
@click.option(
    *("--weights", "-w"),
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Compare with the headers of these safetensors files.",
)
@click.option("--layer", "-l", metavar="PATTERN", help="Only such modules, '*self_attn*'.")
@json_option
def explain(
    config: Path,
    targets: tuple[str, ...],
    tp: int,
    weights: Path | None,
    layer: str | None,
    as_json: bool,
) -> None:
    """Show for each kind of module of CONFIG which scheme it has, what to allocate, what runs it.

    CONFIG is a config.json or the folder of a model. Read are Quark, compressed-tensors, ModelOpt,
    and what DeepSeek and Qwen (fp8) and GPT-OSS (mxfp4) write. Modules that engines run as one
    product stand together; numbers that run are written once. Nothing is downloaded or loaded.

    Exit code 1 if modules of one product disagree, or the files disagree with the description, or
    a target given with --target cannot run a module.

    \b
    archkey quant explain Qwen3.5-397B-A17B-MXFP4 --target rocm_gfx950 --tp 8
    archkey quant explain config.json --layer 'mtp.*'
    archkey quant explain MODEL --weights MODEL --json | jq .files.disagreements
    """
    from archkey.checkpoint.summary import contradicts, summarise

    if weights and tp > 1:
        raise click.UsageError("--weights compares whole tensors; leave --tp out.")
    chosen = targets or [key for key in installed_targets() if key != DEFAULT]
    sessions = [archkey.open(target) for target in dict.fromkeys(chosen)]
    plan, headers = _plan(config, tp, weights)
    document = {"config": str(config), **summarise(plan, sessions, headers, layer)}
    if as_json:
        emit(document)
    else:
        _show(document)
    verdicts = [v["level"] for row in document["rows"] for v in row["targets"].values()]
    if contradicts(document) or (targets and "unsupported" in verdicts):
        raise click.exceptions.Exit(1)


def _plan(config: Path, tp: int, weights: Path | None) -> tuple[Any, Any]:
    """The plan, and the headers if there are files; of an unknown model, its modules are theirs."""
    from archkey import checkpoint
    from archkey.errors import CheckpointError

    headers = checkpoint.from_safetensors(weights) if weights else None
    try:
        layers = checkpoint.layers(config)
    except CheckpointError:
        if headers is None:
            raise
        layers = checkpoint.layers_of(headers)
    return checkpoint.plan(config, layers, tp=tp), headers


def _show(document: Mapping[str, Any]) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    console.print(Text(document["config"], "bold"))
    patterns: dict[str, list[Mapping[str, Any]]] = {}
    for found in document["patterns"]:
        patterns.setdefault(found["scheme"], []).append(found)
    ranks = f", {document['tp']} ranks" if document["tp"] > 1 else ""
    render.facts(
        console,
        [
            ("producer", document["producer"]),
            ("modules", f"{document['modules']}{ranks}"),
            ("weights", document["default"]["text"]),
            ("activations", document["activations"]),
            ("KV cache", document["kv_cache"].replace("none", "not quantised")),
            ("otherwise", document["dtype"]),
            *((scheme, _pattern_lines(found)) for scheme, found in patterns.items()),
        ],
    )
    _rows(console, document)
    for warning in document["warnings"]:
        console.print(Text(f"warning: {warning}", "yellow"))
    for text in document["contradictions"]:
        console.print(Text(f"contradiction: {text}", "red"))
    if document["files"] is not None:
        _show_files(console, document["files"])


def _pattern_lines(found: list[Mapping[str, Any]]) -> Text:
    """Patterns with the modules that each decided; those that differ in numbers, together."""
    from rich.text import Text

    from archkey.checkpoint.names import collapse, words_of

    counts = {entry["pattern"]: entry["modules"] for entry in found}
    kinds: dict[tuple[str, ...], list[str]] = {}
    for pattern in counts:
        kinds.setdefault(words_of(pattern), []).append(pattern)
    lines = []
    for names in kinds.values():
        total = sum(counts[name] for name in names)
        lines.append(f"{', '.join(collapse(names))}  {total or 'no'} module{'s' * (total != 1)}")
    return Text("\n".join(lines))


def _rows(console: Console, document: Mapping[str, Any]) -> None:
    """A row for each kind of module; targets are columns where there is room, or else a line."""
    from rich.text import Text

    from archkey.cli import render

    wide = console.width >= render.WIDE
    targets = list(document["rows"][0]["targets"]) if wide else []
    lines: list[list[render.Cell]] = []
    reasons: dict[str, None] = {}
    for row in document["rows"]:
        fused = f"= {' + '.join(row['fused'])}, " if row["fused"] else ""
        size = f"{fused}{row['count']} x {row['shape'][0]} x {row['shape'][1]}, "
        stored = ", ".join(f"{t['name']} {t['dtype']} {t['shape']}" for t in row["tensors"])
        why = f" ({row['rule']} {', '.join(row['patterns'])})" if row["patterns"] else ""
        below = [size + row["scheme"]["text"] + why, stored, *([] if wide else [_levels(row)])]
        cell = render.stack(Text("\n".join(row["modules"]), "bold"), *below)
        levels = [row["targets"][target]["level"] for target in targets]
        lines.append([cell, *(Text(level, _STYLES[level]) for level in levels)])
        reasons |= dict.fromkeys(_reasons(row))
    render.table(console, ("module", *targets), lines, airy=True)
    for reason in reasons:
        console.print(Text(reason, "dim"))


def _levels(row: Mapping[str, Any]) -> Text:
    """Which targets run a module, by level."""
    from rich.text import Text

    targets: dict[str, list[str]] = {}
    for key, verdict in row["targets"].items():
        targets.setdefault(verdict["level"], []).append(key)
    return Text("; ").join(
        Text(f"{level}: {', '.join(targets[level])}", style)
        for level, style in _STYLES.items()
        if level in targets
    )


def _reasons(row: Mapping[str, Any]) -> Iterator[str]:
    """Why, for all but what every target does: a weight in the model's own dtype."""
    for key, verdict in row["targets"].items():
        if row["scheme"]["weight"] != "none" or verdict["level"] != "native":
            more = (verdict["kernel"] and f"by {verdict['kernel']}", verdict["convert"])
            reason = "; ".join([f"{verdict['level']}: {verdict['reason']}", *filter(None, more)])
            yield f"{row['scheme']['text']} on {key}: {reason}"


def _show_files(console: Console, files: Mapping[str, Any]) -> None:
    from rich.text import Text

    if not files["lines"]:
        console.print(Text(f"files: {files['tensors']} tensors, all as planned", "green"))
    for line in files["lines"]:
        console.print(Text(f"files: {line}", "red"))
    if files["absent"]:
        console.print(f"not in the files, as may be: {', '.join(files['absent'])}")
    if files["remedy"]:
        console.print(Text(f"remedy: {files['remedy']}", "yellow"))
