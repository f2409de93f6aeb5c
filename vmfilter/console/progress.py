"""Progress of a run: a bar that is redrawn on a terminal, elsewhere a line every few seconds; or lines of JSON."""

from __future__ import annotations

import sys
import time

_STAGES = {"classify": "Classifying pages", "write": "Writing pages", "verify": "Verifying pages"}
_BAR_SECONDS = 0.1
_LINE_SECONDS = 5.0
_JSON_SECONDS = 0.5
_GUESS_SECONDS = 1.0
"""Before this, speed and time left would be guesses."""


class _Stage:
    """What is known of a stage that runs.

    Attributes:
        name: of the stage.
        page_size: bytes of a page; 0 if unknown.
        size: bytes of the new dump so far.

    """

    def __init__(self) -> None:
        self.name = ""
        self.page_size = self.size = self._first_size = 0
        self._began = time.monotonic()

    def begin(self, name: str, now: float) -> None:
        self.name, self._began, self._first_size = name, now, self.size

    def seconds_left(self, done: int, total: int, now: float) -> float | None:
        """Return the seconds until the end, as fast as until now; None if that is a guess."""
        passed = now - self._began
        return passed * (total - done) / done if done and passed >= _GUESS_SECONDS else None

    def speed(self, done: int, now: float) -> float | None:
        """Return the bytes of memory per second; None if that is a guess."""
        passed = now - self._began
        return done * self.page_size / passed if self.page_size and passed >= _GUESS_SECONDS else None

    def size_at_end(self, done: int, total: int) -> int | None:
        """Return the bytes that the dump will have if the rest compresses as well; None if nothing is written."""
        if not done or not self.size:
            return None
        return self._first_size + (self.size - self._first_size) * total // done


class ProgressPrinter:
    """A vmfilter.run.Progress that prints to standard error; close() ends the last line.

    A stage that takes less than _LINE_SECONDS prints nothing but on a terminal.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._heard = sys.stderr is not None
        self._stage = _Stage()
        self._last = 0.0
        self._started = time.monotonic()
        self._silent = True  # in this stage

    def note(self, page_size: int, size: int) -> None:
        """See vmfilter.run.Progress."""
        self._stage.page_size, self._stage.size = page_size, size

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        ends = done >= total
        if stage != self._stage.name:
            self.close()
            self._stage.begin(stage, now)
            self._last = 0.0 if self._terminal else now
        if now - self._last < (_BAR_SECONDS if self._terminal else _LINE_SECONDS) and not ends:
            return
        if ends and self._silent and not self._terminal:
            return
        self._last, self._silent = now, False
        share = done / total if total else 1.0
        text = f"{_STAGES[stage]:18} {share:5.0%}  {done} of {total}  {now - self._started:.0f} s"
        text = ", ".join([text, *self._expected(done, total, now)])
        if self._terminal:
            import shutil

            width = max(min(shutil.get_terminal_size().columns - len(text) - 6, 40), 0)
            bar = "#" * round(share * width)
            self._print(f"\r{text}  [{bar:{width}}]\x1b[K", end="")
        else:
            self._print(text)

    def _expected(self, done: int, total: int, now: float) -> list[str]:
        """Return the speed, the time left and the size at the end, as far as they are known."""
        speed, left, size = (
            self._stage.speed(done, now),
            self._stage.seconds_left(done, total, now),
            self._stage.size_at_end(done, total),
        )
        said = [] if speed is None else [f"{speed / 2**20:.0f} MiB/s"]
        if left is not None and done < total:
            said.append(f"{left:.0f} s left")
            said += [] if size is None else [f"dump about {size / 2**20:.1f} MiB"]
        return said

    def _print(self, text: str, end: str = "\n") -> None:
        """Print until that fails once: a closed terminal must not end the run."""
        if self._heard:
            try:
                print(text, end=end, file=sys.stderr, flush=True)
            except OSError:
                self._heard = False

    def close(self) -> None:
        """End the bar's line."""
        if self._terminal and self._stage.name:
            self._print("")
        self._stage.name, self._silent = "", True


class ProgressLines:
    """A vmfilter.run.Progress that prints lines of JSON to standard error, and one at the end of each stage."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._heard = sys.stderr is not None
        self._stage = _Stage()

    def note(self, page_size: int, size: int) -> None:
        """See vmfilter.run.Progress."""
        self._stage.page_size, self._stage.size = page_size, size

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage.name:
            self._stage.begin(stage, now)
        if not self._heard or (now - self._last < _JSON_SECONDS and done < total):
            return
        self._last = now
        expected = {
            "bytes_per_second": self._stage.speed(done, now),
            "seconds_left": self._stage.seconds_left(done, total, now),
            "size_at_end": self._stage.size_at_end(done, total),
        }
        members = "".join(f', "{name}": {"null" if n is None else round(n)}' for name, n in expected.items())
        seconds = round(now - self._started, 3)
        try:
            # No name contains what JSON escapes.
            print(
                f'{{"stage": "{stage}", "done": {done}, "total": {total}, "seconds": {seconds}{members}}}',
                file=sys.stderr,
                flush=True,
            )
        except OSError:  # a closed pipe must not end the run
            self._heard = False

    def close(self) -> None:
        """Do nothing: each line has ended."""
