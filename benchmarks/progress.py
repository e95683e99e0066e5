"""The progress bar that all commands share: done, rate, time left."""

from rich import progress
from rich.console import Console
from rich.text import Text


class _Rate(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


def progress_bar(console: Console) -> progress.Progress:
    """Create a progress bar, to be used as a context manager."""
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),  # a data set's name may look like markup
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _Rate(),
        progress.TimeRemainingColumn(),
        console=console,
    )
