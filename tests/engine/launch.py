"""Trainings on several processes without importing everything for each: one process imports it and forks launchers,
which fork ranks. As a script it reads jobs from stdin and answers when every process of a job is gone, a JSON line each.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__)


class Launcher:
    """Starts jobs, one at a time, in a process that is ready to fork."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(SCRIPT.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # which a training in this process has set
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def __call__(self, folder: Path, *, world: int = 2, limit: float = 300, **job: Any) -> tuple[list[int], str]:
        """Run a job to its end: exit codes of the ranks and, last, of their launcher; what they all printed.

        Args:
            folder: run folder.
            limit: seconds; processes that wait for each other would wait forever.
            job: `toy`, the toy's `stage` and other arguments of `train`, or `arguments` of the command line; `signal`,
                arguments of `Signal`.
        """
        assert self.process.stdin
        assert self.process.stdout
        log = folder.with_name(folder.name + ".log")
        print(json.dumps({"folder": str(folder), "world": world, "log": str(log), **job}), file=self.process.stdin)
        self.process.stdin.flush()
        timer = threading.Timer(limit, os.killpg, (self.process.pid, signal.SIGKILL))
        timer.start()
        answer = self.process.stdout.readline()
        timer.cancel()
        assert answer, f"not done after {limit} s: {log.read_text()}"
        return json.loads(answer), log.read_text()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


class Signal:
    """A signal for `victim` (a rank, or "launcher"): in the `moment` ("step" or "save") of step `step`, or of the first
    one after it that has such a moment; after `part` of the time that the moment took before."""

    def __init__(self, rank: int, *, victim: int | str, moment: str, step: int, part: float, name: str) -> None:
        self.pid = os.getppid() if victim == "launcher" else os.getpid()
        self.armed = rank == (0 if victim == "launcher" else victim)
        self.moment, self.step, self.part, self.number = moment, step, part, signal.Signals[name]
        self.began, self.took = 0.0, 0.02

    def begin(self, moment: str, step: int) -> None:
        self.began = time.perf_counter()
        if self.armed and moment == self.moment and step >= self.step:
            self.armed = False
            threading.Timer(self.part * self.took, os.kill, (self.pid, self.number)).start()

    def end(self, moment: str) -> None:
        if moment == self.moment:
            self.took = time.perf_counter() - self.began


def train_toy(job: dict[str, Any], rank: int) -> None:
    toy = runpy.run_path(str(SCRIPT.with_name("toy.py")))
    from xsam.engine import trainer

    loader, model = toy["loader"], toy["build"]()
    if job["toy"].get("resume"):  # then none of these weights may be left
        for parameter in model.parameters():
            parameter.data.fill_(9)
    if "signal" in job:
        sent, save = Signal(rank, **job["signal"]), trainer.checkpoint.save

        def watched(**keywords: Any) -> Any:
            for step, batches in enumerate(toy["loader"](**keywords), keywords["start_step"]):
                sent.begin("step", step)
                yield batches
                sent.end("step")

        def saved(engine: Any, folder: Path, step: int, *arguments: Any, **keywords: Any) -> None:
            sent.begin("save", step)
            save(engine, folder, step, *arguments, **keywords)
            sent.end("save")

        loader, trainer.checkpoint.save = watched, saved
    options = {"steps_per_epoch": 10} | job["toy"]
    config = {"stage": options.pop("stage")}
    trainer.train(model, toy["ToyCriterion"](), loader, config, Path(job["folder"]), **options)


def rank(job: dict[str, Any], number: int, port: int, pipe: int) -> None:
    """One process of a training; says at its end how it ended."""
    if job["world"] > 1:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(job["world"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    code: Any = 1
    try:
        if "toy" in job:
            train_toy(job, number)
            code = 0
        else:
            from xsam.cli import main

            code = main([*job["arguments"], "--work-dir", job["folder"]])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(pipe, f"{number} {code}\n".encode())
    os._exit(code)


def launch(job: dict[str, Any], pipe: int) -> None:
    """What torchrun does: start the ranks; where one fails, end the others."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for number in range(job["world"]):
        ranks.append(os.fork())
        if not ranks[-1]:
            rank(job, number, port, pipe)
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    os._exit(0)


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an import prints
    import xsam.engine.run  # noqa: F401  # first: it makes the others importable
    from xsam.compat import prepare_deepspeed

    prepare_deepspeed()
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    gc.freeze()  # else the first collection of every child copies all pages
    for line in sys.stdin:
        job = json.loads(line)
        ours, pipe = os.pipe()
        child = os.fork()
        if not child:
            launch(job, pipe)
        os.close(pipe)
        with os.fdopen(ours) as ends:  # at its end when no process has it open any more
            codes = dict(map(int, end.split()) for end in ends)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ranks = [codes.get(number, -signal.SIGKILL) for number in range(job["world"])]
        print(json.dumps([*ranks, code]), file=answers, flush=True)
    os._exit(0)  # an orderly exit takes seconds


if __name__ == "__main__":
    serve()
