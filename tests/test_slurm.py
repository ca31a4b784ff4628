"""A SLURM cluster of one node on this machine: what docs/guides/clusters.md says of it is submitted and preempted.

Debian: ``apt install slurm-wlm munge``, and root, whom slurmd runs jobs for. Elsewhere these tests say what they miss.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from runs import TINY, assert_same_run
from test_sweep import command as sweep_command

pytestmark = [pytest.mark.faults, pytest.mark.slow]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sacct")
LONG = (*TINY, "trainer.max_epochs=12", "learner=bp")
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=1
PartitionName=here Nodes=ALL Default=YES State=UP
"""  # a job put back waits for as long as a credential is valid: cred_expire, 120 s by default


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands find the cluster; its daemons end with the tests."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
    programs = {name: shutil.which(name, path=path) for name in PROGRAMS}
    if missing := [name for name, found in programs.items() if not found]:
        pytest.skip(f"no {', '.join(missing)}: apt install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("slurmd starts jobs as root alone")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munge refuses a socket that others cannot reach
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=socket.gethostname(), ports=ports, folder=folder))
    munge = [f"--{name}={folder}/{name}" for name in ("pid-file", "log-file", "seed-file")]
    munge += [f"--key-file={folder}/key", f"--socket={folder}/munge.socket"]
    daemons = []
    environment = {**os.environ, "SLURM_CONF": str(configuration), "PYTHONPATH": _python_path()}
    try:
        for words in (["munged", "-F", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (folder / f"{words[0]}.out").open("w") as out:
                daemon = [str(programs[words[0]]), *words[1:]]
                daemons.append(subprocess.Popen(daemon, env=environment, stdout=out, stderr=out))
            time.sleep(1)
        for _ in range(60):
            told = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            if told.stdout.strip() == "idle":
                break
            time.sleep(1)
        else:
            said = " ".join(path.read_text()[-300:] for path in folder.glob("*.out"))
            pytest.skip(f"the cluster did not start within a minute: {told.stdout} {told.stderr} {said}")
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        for started in reversed(daemons):
            started.terminate()
            started.wait(timeout=60)


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def wait_for(what: str, seconds: float, found: object) -> None:
    """Until ``found()`` holds."""
    end = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.1)


def in_queue(environment: dict[str, str]) -> str:
    """Numbers and states of the jobs that have not ended."""
    return subprocess.run(["squeue", "-h", "-o", "%A %T"], env=environment, capture_output=True, text=True).stdout


def signalled(environment: dict[str, str], name: str, folder: Path) -> None:
    """Send the job's steps a signal after their first checkpoint, which must not be the last; the job is put back."""
    wait_for("checkpoint", 300, lambda: list(folder.glob("**/checkpoints/last.ckpt")))
    assert not list(folder.glob("**/summary.json"))
    job = in_queue(environment).split()[0]
    subprocess.run(["scancel", f"--signal={name}", job], env=environment, check=True)
    wait_for("job put back", 120, lambda: "PENDING" in in_queue(environment))
    assert not list(folder.glob("**/summary.json")), "it ended before the signal"


def test_the_job_of_the_documentation_is_put_back_and_ends_with_the_same_numbers(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "guides" / "clusters.md").read_text()
    lines = [line.strip() for line in page.partition("## One job on SLURM")[2].splitlines() if line.startswith("    ")]
    options, run = lines
    assert options.startswith("#SBATCH --requeue") and run.startswith("srun dtp train learner=dtp resume=true")
    dtp = f"{sys.executable} -m dtp_lightning"
    command = " ".join([run.partition("hydra.run.dir=")[0].replace("learner=dtp", "", 1), *LONG])
    script = command.replace("srun dtp", f"srun {dtp}") + " hydra.run.dir=run" + run.partition("outputs/mine")[2]
    (tmp_path / "job.sh").write_text(f"#!/bin/bash\n{options}\n{script}\n")
    subprocess.run(["sbatch", "job.sh"], cwd=tmp_path, env=cluster, check=True)
    signalled(cluster, "USR1", tmp_path / "run")
    wait_for("end of the job", 300, lambda: not in_queue(cluster))
    said = "".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
    assert (tmp_path / "run" / "summary.json").exists(), said
    shown = subprocess.run(["scontrol", "show", "jobs"], env=cluster, capture_output=True, text=True).stdout
    assert re.search(r"Restarts=1\b", shown) and "JobState=COMPLETED" in shown, shown
    alone = [sys.executable, "-m", "dtp_lightning", "train", "resume=true", *LONG, "hydra.run.dir=alone"]
    subprocess.run(alone, cwd=tmp_path, env=cluster, check=True, capture_output=True)
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_a_sweep_by_submitit_is_preempted_and_ends_with_the_same_numbers(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    if not importlib.util.find_spec("submitit"):
        pytest.skip("pip install 'dtp-lightning[slurm]' to run this")
    jobs = ("learner=bp", "seed=0", "trainer.max_epochs=12", "trainer.limit_train_batches=3", "evaluation=[]")
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null")
    folder, alone = tmp_path / "sweep", tmp_path / "alone"
    words = sweep_command(folder, *jobs, *launcher)
    process = subprocess.Popen(
        words, cwd=tmp_path, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        signalled(cluster, "USR2", folder)
        said, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    logs = "".join(path.read_text() for path in folder.glob(".submitit/*/*.err"))
    assert process.returncode == 0, said + logs
    subprocess.run(sweep_command(alone, *jobs), cwd=tmp_path, env=cluster, check=True, capture_output=True)
    (ours,), (theirs,) = ([path.parent for path in place.glob("*/summary.json")] for place in (folder, alone))
    assert_same_run(ours, theirs)
