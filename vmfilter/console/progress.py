"""Progress of a run: a bar that is redrawn on a terminal, elsewhere a line every few seconds; or lines of JSON."""

from __future__ import annotations

import sys
import time

_STAGES = {"classify": "Classifying pages", "write": "Writing pages", "verify": "Verifying pages"}
_BAR_SECONDS = 0.1
_LINE_SECONDS = 5.0
_JSON_SECONDS = 0.5


class ProgressPrinter:
    """A vmfilter.run.Progress that prints to standard error; close() ends the last line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._heard = sys.stderr is not None
        self._stage = ""
        self._last = 0.0
        self._started = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        ends = done >= total
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._last = 0.0 if self._terminal else now
        if now - self._last < (_BAR_SECONDS if self._terminal else _LINE_SECONDS) and not ends:
            return
        self._last = now
        share = done / total if total else 1.0
        text = f"{_STAGES[stage]:18} {share:5.0%}  {done} of {total}  {now - self._started:.0f} s"
        if self._terminal:
            import shutil

            width = max(min(shutil.get_terminal_size().columns - len(text) - 6, 40), 0)
            bar = "#" * round(share * width)
            self._print(f"\r{text}  [{bar:{width}}]\x1b[K", end="")
        else:
            self._print(text)

    def _print(self, text: str, end: str = "\n") -> None:
        """Print until that fails once: a closed terminal must not end the run."""
        if self._heard:
            try:
                print(text, end=end, file=sys.stderr, flush=True)
            except OSError:
                self._heard = False

    def close(self) -> None:
        """End the bar's line."""
        if self._terminal and self._stage:
            self._print("")
        self._stage = ""


class ProgressLines:
    """A vmfilter.run.Progress that prints lines of JSON to standard error, and one at the end of each stage."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._heard = sys.stderr is not None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._heard or (now - self._last < _JSON_SECONDS and done < total):
            return
        self._last = now
        seconds = round(now - self._started, 3)
        try:
            # No name contains what JSON escapes.
            print(
                f'{{"stage": "{stage}", "done": {done}, "total": {total}, "seconds": {seconds}}}',
                file=sys.stderr,
                flush=True,
            )
        except OSError:  # a closed pipe must not end the run
            self._heard = False

    def close(self) -> None:
        """Do nothing: each line has ended."""
