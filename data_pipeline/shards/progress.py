"""A progress bar over tasks in other processes, or on other machines: each writes how far it is into a file.

prepare:  43%|████▎     | 9.4M/21.9M [00:04<00:06, 2.1MB/s, part 3/6]
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

from tqdm import tqdm

from data_pipeline.shards.workspace import Workspace

SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def progress_bar(workspace: Workspace, sizes: Sequence[int]) -> Iterator[None]:
    """Shows the bar while the block runs.

    Args:
        workspace: where the tasks write their progress.
        sizes: stored bytes of each part.
    """
    done = Event()
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="prepare", initial=_read(workspace, sizes)[0]) as bar:

        def look() -> None:
            read, complete = _read(workspace, sizes)
            bar.set_postfix_str(f"{complete}/{len(sizes)} parts", refresh=False)
            bar.update(read - bar.n)

        def watch() -> None:
            while not done.wait(SECONDS_BETWEEN_LOOKS):
                look()

        thread = Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            look()


def _read(workspace: Workspace, sizes: Sequence[int]) -> tuple[int, int]:
    """Stored bytes read so far, and the number of complete parts."""
    total = complete = 0
    for rank, size in enumerate(sizes):
        if workspace.completion_marker(rank).exists():
            total += size
            complete += 1
        elif workspace.progress(rank).exists():
            total += int(workspace.progress(rank).read_text() or 0)
    return total, complete
