"""What a build prints of the losses of its approximate passes: by image, and by layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_KEPT = {16: "16 bits", 32: "float"}


def print_losses(record: Mapping[str, Any]) -> None:
    """Tables for each stage that an approximate pass made; nothing if there is none."""
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    for stage in record["stages"]:
        if stage["loss"]:
            out.print(_images(stage))
            if stage["loss"].get("truth"):
                out.print(_truth(stage))
        if stage["layers"]:
            out.print(_layers(stage))
            out.print(
                "[dim]alone: the loss when only this layer is approximated, "
                "on the first images that calibrate[/]"
            )


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=escape(title),
                  title_justify="left")  # fmt: skip
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    return table


def _images(stage: Mapping[str, Any]) -> Table:
    """A row an image, and one for all."""
    loss = stage["loss"]
    title = f"\n{stage['stage']}: the loss against the model before it"
    table = _table(title, "image", "AbsRel %", "δ1 %", "RMSE", "SNR dB")
    for row in [*loss["images"], {"image": "all (SNR: the least)", **loss}]:
        table.add_row(escape(row["image"]), _percent(row["abs_rel"]), _percent(row["delta1"]),
                      _number(row["rmse"]), _number(row["snr_db"]))  # fmt: skip
    return table


def _truth(stage: Mapping[str, Any]) -> Table:
    """A row an image, and one for all: how far the model before and this one are from the truth."""
    truth = stage["loss"]["truth"]
    title = f"\n{stage['stage']}: ground truth ({truth['aligned_with']} aligned), before → after"
    table = _table(title, "image", "AbsRel %", "δ1 %", "RMSE")
    for row in [*truth["images"], {"image": "all", **truth}]:
        cells = [f"{show(row['before'][name])} → {show(row['after'][name])}" for name, show in
                 (("abs_rel", _percent), ("delta1", _percent), ("rmse", _number))]  # fmt: skip
        table.add_row(escape(row["image"]), *cells)
    return table


def _layers(stage: Mapping[str, Any]) -> Table:
    """A row a layer, in the model's order."""
    table = _table(
        f"\n{stage['stage']}: what each layer loses", "layer", "nodes", "alone %", "kept in"
    )
    for row in stage["layers"]:
        table.add_row(escape(row["layer"]), str(row["nodes"]), _percent(row["loss"]),
                      _KEPT.get(row["spared_bits"], ""))  # fmt: skip
    return table


def _percent(value: float | None) -> str:
    return _number(None if value is None else 100 * value)


def _number(value: float | None) -> str:
    """A value of a record, where null stands for what JSON does not have."""
    return "–" if value is None or value != value else f"{value:.4g}"
