"""The model process as the web process sees it: started, given jobs, ended."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from backend.errors import ModelProcessDied, ModelProcessStopped, ModelUnavailable
from backend.worker.messages import (
    Answer,
    BadReference,
    DrawThumbnail,
    Failed,
    Job,
    Loaded,
    Message,
    ModelSpec,
    NotLoaded,
    Progress,
    Result,
    Thumbnail,
    read_message,
    write_message,
)

log = logging.getLogger(__name__)

CAVSAM = "backend.worker.model_server:open_cavsam"
DRAWING, DRAWINGS = "backend.worker.drawing:open_drawing", "backend.worker.drawing:Drawing"
SAM2, CLICKS = "backend.worker.clicks:open_sam2", "backend.worker.clicks:Clicks"
STOP_PATIENCE = 2.0
SECRET = re.compile("PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL", re.IGNORECASE)
HUB_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"})
"""What the model hub needs of a model that is not public."""


@dataclass
class _Running:
    """A started model process. Closing `life` ends it, whatever it is doing; so does the end of this process."""

    process: subprocess.Popen[bytes]
    jobs: Connection
    life: int


class ModelProcess:
    """The model's process; started with the first job and again after it ended. Jobs come from one thread only."""

    def __init__(self, spec: ModelSpec, loaded: Callable[[], None] = lambda: None):
        """Take which model is opened, and who is told whenever it has been loaded; nothing is started yet."""
        self._spec, self._loaded = spec, loaded
        self._running: _Running | None = None
        self._stopped = False
        self._lock = threading.Lock()  # guards the three above; `stop` comes from another thread
        self.device = ""
        """Where the model runs, as the process said when it had loaded it."""
        self.gpu_bytes: int | None = None
        """Memory that the process held on GPUs after its last job."""

    @property
    def pid(self) -> int | None:
        """Process number, if it runs."""
        running = self._running
        return running.process.pid if running else None

    @property
    def is_running(self) -> bool:
        """Whether there is a process, loading or loaded."""
        running = self._running
        return running is not None and running.process.poll() is None

    @property
    def resident_bytes(self) -> int | None:
        """Main memory that it holds; `None` if it does not run or the system does not say."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")

    def load(self, on_progress: Callable[[str, int, int], None]) -> None:
        """Start the process and wait until its model is loaded; does nothing if it runs.

        Raises:
            ModelUnavailable: the model cannot be loaded, or the process ended while it was.
            ModelProcessStopped: `stop` was called.
        """
        with self._lock:
            if self._stopped:
                raise ModelProcessStopped("The backend is stopping.")
            running = self._running
        if running is not None:
            if running.process.poll() is None:
                return
            self._end()  # it ended while it had nothing to do
        try:
            with self._lock:
                if self._stopped:
                    raise ModelProcessStopped("The backend is stopping.")
                self._running = _start(self._spec)
            answer = self._receive(on_progress)
        except ModelProcessDied as error:  # no job's fault: none was begun
            raise ModelUnavailable(
                f"{error} It was loading the model; check its weights, and the memory if it was killed."
            ) from error
        match answer:
            case Loaded(seconds, device, gpu_bytes):
                self.device, self.gpu_bytes = device, gpu_bytes
                log.info("The model is loaded (process %d, %.1f s).", self.pid or 0, seconds)
                self._loaded()
            case NotLoaded(message):
                self._end()
                raise ModelUnavailable(message)
            case other:
                raise TypeError(f"The model process began with {type(other).__name__}.")

    def run(
        self,
        job: Job,
        on_progress: Callable[[str, int, int], None],
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Have one job done. Raises as `load` does, and `ModelProcessDied` in the middle of the job.

        A job that `is_cancelled` is not begun, and ends with `ModelProcessDied` once `interrupt` is called.
        """
        answer = self._ask(job, on_progress, is_cancelled)
        if not isinstance(answer, Result | Failed | BadReference):
            raise TypeError(f"The model process answered a job with {type(answer).__name__}.")
        self.gpu_bytes = answer.gpu_bytes
        return answer

    def draw(self, job: DrawThumbnail) -> Thumbnail | Failed:
        """Have one thumbnail drawn, by the drawing process. Raises as `run` does."""
        answer = self._ask(job, lambda step, done, total: None, lambda: False)
        if not isinstance(answer, Thumbnail | Failed):
            raise TypeError(f"The drawing process answered a job with {type(answer).__name__}.")
        return answer

    def _ask(
        self,
        job: Job | DrawThumbnail,
        on_progress: Callable[[str, int, int], None],
        is_cancelled: Callable[[], bool],
    ) -> Message:
        """Send one job and wait for what comes of it."""
        self.load(on_progress)
        if is_cancelled():
            raise ModelProcessDied("The task was cancelled.")
        running = self._running
        if running is None:
            raise ModelProcessStopped("The backend is stopping.")
        try:
            running.jobs.send_bytes(write_message(job))
        except OSError as error:
            raise self._died() from error
        return self._receive(on_progress)

    def interrupt(self) -> None:
        """End the process that runs, and the job in work with it; the next job starts another. For any thread."""
        with self._lock:
            running = self._running
        if running is not None:
            running.process.kill()
            running.process.wait()

    def stop(self) -> None:
        """End the process for good, even in the middle of a job; may be called by any thread."""
        with self._lock:
            self._stopped = True
        self._end(at_once=True)

    def _receive(self, on_progress: Callable[[str, int, int], None]) -> Message:
        """Wait for the next message that is no progress."""
        running = self._running
        if running is None:
            raise ModelProcessStopped("The backend is stopping.")
        while True:
            try:
                message = read_message(running.jobs.recv_bytes())
            except (EOFError, OSError) as error:
                raise self._died() from error
            if not isinstance(message, Progress):
                return message
            on_progress(message.step, message.done, message.total)

    def _died(self) -> ModelProcessDied | ModelProcessStopped:
        status = self._end()
        if self._stopped:
            return ModelProcessStopped("The backend is stopping.")
        return ModelProcessDied(f"The model's process ended unexpectedly ({_ending(status)}).")

    def _end(self, *, at_once: bool = False) -> int | None:
        """End the running process, if any; returns its exit status. It has nothing to tidy up, so it may go at once."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return None
        os.close(running.life)
        if at_once:
            running.process.terminate()
        try:
            status = running.process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            running.process.kill()
            status = running.process.wait()
        running.jobs.close()
        return status


def _start(spec: ModelSpec) -> _Running:
    try:
        ours, theirs = Pipe()
        watched, life = os.pipe()
    except OSError as error:
        raise ModelProcessDied(f"The model's process cannot be started ({error.strerror}).") from error
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.worker.model_server", str(theirs.fileno()), str(watched)],
            pass_fds=(theirs.fileno(), watched),
            # threads that spin while they wait starve each other on shared cores; set before torch is imported
            env={
                "OMP_WAIT_POLICY": "PASSIVE",
                **without_secrets(os.environ),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            stdin=subprocess.DEVNULL,
        )
        ours.send_bytes(write_message(spec))
    except OSError as error:
        ours.close()
        os.close(life)  # ends the process, where there is one
        raise ModelProcessDied(f"The model's process cannot be started ({error.strerror}).") from error
    finally:
        theirs.close()
        os.close(watched)
    return _Running(process, ours, life)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables whose names are not those of secrets: whatever runs in the model process has no use for them."""
    return {name: value for name, value in environment.items() if name in HUB_TOKENS or not SECRET.search(name)}


def _ending(status: int | None) -> str:
    if status is None:
        return "status unknown"
    if status >= 0:
        return f"status {status}"
    name = signal.Signals(-status).name
    return f"{name}; most likely out of memory" if name == "SIGKILL" else name
