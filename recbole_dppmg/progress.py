"""Progress bars: one look for every long step, with rate and time left."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(steps: Iterable[Any], description: str, unit: str = "step", total: int | None = None) -> tqdm:
    """Iterate over `steps` behind a bar; where the output is no terminal, the bar speaks every 10 seconds."""
    live = sys.stderr.isatty()
    return tqdm(
        steps,
        desc=f"{description:<24}",
        unit=unit,
        total=total,
        mininterval=0.2 if live else 10,
        dynamic_ncols=live,
        leave=True,
    )


def close_bars() -> None:
    """End every bar that is still open, after a failure, so that what is told next starts on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
