"""The official interpolation of DINOv2's position table, done once at export time.

dinov2.py passes `scale_factor = (n + 0.1) / 37` to a bicubic interpolation that is not
corner-aligned, so output sample i reads the table at `(i + 0.5) * 37 / (n + 0.1) - 0.5`.
transformers passes the size instead (`37 / n`): the two differ by about 1e-2.
"""

import torch
from torch.nn import functional

from models.variants import TABLE_SIDE

OFFSET = 0.1
"""`interpolate_offset` of the official DINOv2 (0 only for its register models)."""


def interpolate_positions(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Resample a 1×(1+37·37)×C table to 1×(1+rows·columns)×C; the class token's row is kept.

    At 37×37 the table comes back unchanged, as in the official code. Computed in float64 and
    returned in the table's type, so what is left is the rounding of the result.
    """
    if rows == columns == TABLE_SIDE:
        return table
    width = table.shape[-1]
    grid = table[:, 1:].double().reshape(1, TABLE_SIDE, TABLE_SIDE, width).permute(0, 3, 1, 2)
    scale = ((rows + OFFSET) / TABLE_SIDE, (columns + OFFSET) / TABLE_SIDE)
    grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(1, rows * columns, width)
    return torch.cat((table[:, :1], patches.to(table.dtype)), dim=1)
