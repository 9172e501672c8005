"""One clear line when a process of a run is gone, from those that are left.

A killed process takes the run with it: the others find their connection closed, or are told to stop
(SIGTERM) by torchrun, which reports at length which process failed first. What that report cannot
say is said here, by one process: how far the run is saved, and how to go on.
"""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from prefkit.train.checkpointing import checkpoint

SAID = ".stopped"  # in the output folder: the process that makes this file is the one that speaks
PATIENCE = 10.0  # seconds for the launcher to find the process that died before this one ends
_BROKEN = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))


class _Teller:
    def __init__(self, folder: Path, resuming: bool) -> None:
        self.folder, self.resuming = folder, resuming
        self.lock = threading.Lock()  # nobody ends the process in the middle of the line

    def tell(self, what: str) -> None:
        """Prints what happened and how to go on, once over all processes."""
        with self.lock:
            try:
                os.close(os.open(self.folder / SAID, os.O_CREAT | os.O_EXCL))
            except OSError:
                return
            newest, _ = checkpoint.newest_complete(self.folder)
            again = "Start the same command again"
            if not self.resuming:
                again += " with --resume_from_checkpoint auto"
            lines = [
                f"\nprefkit: {what}",
                f"The newest complete checkpoint is {newest}. {again} to go on from it."
                if newest
                else f"There is no complete checkpoint in {self.folder} yet (--save_steps sets how "
                "often one is written): start the same command again from the beginning.",
            ]
            print("\n".join(lines), file=sys.stderr, flush=True)


@contextmanager
def lost_processes_told(folder: Path, resuming: bool) -> Iterator[None]:
    """Watches over the training of several processes inside the block; does nothing for one.

    Args:
        folder: the output folder of the run, the same for all processes.
        resuming: whether the command resumes by itself when it is started again.

    Raises:
        SystemExit: code 1, when another process is gone.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    if dist.get_rank() == 0:
        (folder / SAID).unlink(missing_ok=True)
    dist.barrier()
    teller = _Teller(folder, resuming)
    restore = _on_sigterm(teller)
    try:
        yield
    except Exception as error:
        if not is_lost_connection(error):
            (folder / SAID).touch()  # it speaks for itself, and the others need not guess
            raise
        first = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip().splitlines()[0])[:120]
        teller.tell(
            "Another process of this run is gone or does not answer (killed, out of memory, or "
            f"ended by an error of its own), so training stopped here: {first}"
        )
        time.sleep(PATIENCE)  # torchrun ends this process as soon as it has found the other
        raise SystemExit(1) from None
    finally:
        restore()
    if dist.get_rank() == 0:
        (folder / SAID).unlink(missing_ok=True)


def _on_sigterm(teller: _Teller) -> Any:
    """Tells and ends on SIGTERM even while the main thread waits in a collective.

    Python runs signal handlers between two steps of the main thread, which a collective can hold
    up for good; the byte that arrives in a socket wakes another thread at once.

    Returns:
        A function that puts everything back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def handler(*_: Any) -> None:
        """Nothing: the listening thread ends the process."""

    before = signal.signal(signal.SIGTERM, handler)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def leave_child() -> None:
        if signal.getsignal(signal.SIGTERM) is handler:  # a data worker that is told to stop
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=leave_child)

    def listen() -> None:
        while data := reader.recv(1):
            if data[0] == signal.SIGTERM:
                teller.tell(
                    "Training was told to stop (SIGTERM). A launcher does that when another process"
                    " of the run died, which its report names, or when the job is cancelled."
                )
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()

    def restore() -> None:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        writer.close()  # ends the thread

    return restore
