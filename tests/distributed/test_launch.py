"""`python -m fusedstep run`: jobs that start, end, die, start again and leave nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from threading import Timer

import pytest

from fusedstep.distributed import launch, mpiexec
from fusedstep.distributed.mpiexec import Host
from tests.distributed.jobs import needs_mpi

TRAINING = Path(__file__).with_name("training.py")
SHARED = Path("/dev/shm")
SET = ("OMP_", "OPENBLAS_", "MKL_", "FUSEDSTEP_", "SLURM_")

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")


@pytest.fixture
def environment():
    """An environment in which nobody has set what the command sets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SET)}


@pytest.fixture
def start(environment, tmp_path):
    """Start the command in a folder of its own; it is killed at the end, or after a minute."""
    started = []

    def begin(*words, program=None, **variables):
        if program is not None:
            (tmp_path / "program.py").write_text(program)
        process = subprocess.Popen(
            [sys.executable, "-m", "fusedstep", "run", *map(str, words)],
            cwd=tmp_path,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watch = Timer(60, process.kill)
        watch.start()
        started.append((process, watch))
        return process

    yield begin
    for process, watch in started:
        watch.cancel()
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Run the command, and return its exit code and what it has printed to both streams."""

    def finish(*words, timeout=30, **more):
        process = start(*words, **more)
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err

    return finish


def first_lines(process, count):
    return sorted(process.stdout.readline().strip() for _ in range(count))


def living(numbers):
    return [number for number in numbers if os.path.exists(f"/proc/{number}") and "Z" not in state(number)]


def state(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].split()[0]
    except OSError:
        return "Z"


def shared_files(number):
    lines = Path(f"/proc/{number}/maps").read_text().splitlines()
    return {line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line and "(deleted)" not in line}


def gone(numbers, seconds=5):
    """Return whether processes have ended within a time."""
    limit = time.monotonic() + seconds
    while living(numbers) and time.monotonic() < limit:
        time.sleep(0.02)
    return not living(numbers)


# Starting and ending.


@needs_mpi
def test_ranks_meet(run):
    code, out, err = run(
        "--ranks", 3, "program.py", "--ranks", "x y",
        program="import sys\nfrom mpi4py import MPI\nc = MPI.COMM_WORLD\nprint(c.rank, c.allreduce(1), sys.argv[1:])",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == [f"{rank} 3 ['--ranks', 'x y']" for rank in range(3)]


@needs_mpi
@pytest.mark.parametrize("words", [["program.py"], ["-m", "program"]], ids=" ".join)
def test_modules_come_from_the_folder_of_the_program(run, tmp_path, words):
    """Modules of fusedstep.distributed have names that others have too, and must not come in their place."""
    (tmp_path / "launch.py").write_text("where = 'beside'")
    code, out, err = run(
        "--ranks", 2, *words, "-m", "x", program="import sys, launch\nprint(launch.where, sys.argv[1:])"
    )
    assert (code, out, err) == (0, "beside ['-m', 'x']\n" * 2, "")


@needs_mpi
@pytest.mark.parametrize(
    ("death", "codes"),
    [("sys.exit(3)", {3}), ("raise OSError('broken')", {1}), ("os.kill(os.getpid(), 9)", {9, 137, 255})],
)
def test_a_rank_that_fails_ends_all(run, death, codes):
    program = f"""
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
if world.rank == 1:
    {death}
world.Barrier()
"""
    begin = time.monotonic()
    code, _, err = run("--ranks", 3, "program.py", program=program)
    assert code in codes
    assert err.count("OSError: broken") == death.count("broken")
    assert f"run: attempt 1 with 3 ranks has ended with exit code {code} after " in err
    assert time.monotonic() - begin < 20


@needs_mpi
def test_lines_come_whole_and_when_they_are_printed(start):
    program = """
import time
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
for k in range(200):
    print("rank", rank, "line", k, "x" * 50)
time.sleep(60)
"""
    process = start("--ranks", 3, "program.py", program=program)
    expected = sorted(f"rank {rank} line {k} {'x' * 50}" for rank in range(3) for k in range(200))
    assert first_lines(process, 600) == expected
    assert process.poll() is None


def test_one_rank_needs_no_mpi(run):
    program = "import os, sys\nprint('mpi4py' in sys.modules, os.environ['FUSEDSTEP_ATTEMPT'])\nsys.exit(4)"
    code, out, err = run("--ranks", 1, "--restarts", 1, "program.py", program=program)
    assert (code, out) == (4, "False 1\nFalse 2\n")
    assert err.count("\n") == 3


# The environment.

READ = """
import os, fusedstep as fs
names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FUSEDSTEP_NUM_THREADS"
print(*map(os.environ.get, names), fs.info()["threads"])
"""


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        ([], {}, "1 1 1 {cores} {cores}"),
        (["--threads", 3], {"FUSEDSTEP_NUM_THREADS": "2"}, "1 1 1 3 3"),
        ([], {"FUSEDSTEP_NUM_THREADS": "2"}, "1 1 1 2 2"),
        ([], {"OMP_NUM_THREADS": "5"}, "5 5 5 {cores} {cores}"),
        ([], {"OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": ""}, "1 4 1 {cores} {cores}"),
    ],
)
def test_threads(run, words, variables, expected):
    code, out, _ = run("--ranks", 1, *words, "program.py", program=READ, **variables)
    assert (code, out) == (0, expected.format(cores=launch.processors()[0]) + "\n")


@needs_mpi
def test_every_number_of_ranks_has_the_same_threads_of_blas(run):
    """More ranks than cores get a thread each."""
    code, out, _ = run("--ranks", 5, "program.py", program=READ)
    threads = max(1, launch.processors()[0] // 5)
    assert (code, out) == (0, f"1 1 1 {threads} {threads}\n" * 5)


@pytest.mark.parametrize(
    ("user", "ranks", "placed", "expected"),
    [
        ({}, 4, [], 4),
        ({}, 32, [], 1),
        ({}, 6, [Host("a", 4), Host("b", 2)], 4),
        ({"SLURM_JOB_NUM_NODES": "4"}, 8, [], 8),
        ({"SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_PER_TASK": "3"}, 8, [], 3),
    ],
)
def test_cores_are_shared_by_the_ranks_of_a_host(monkeypatch, user, ranks, placed, expected):
    monkeypatch.setattr(launch, "processors", lambda: (16, ""))
    assert launch._environment(user, ranks, placed, None, 1, None)["FUSEDSTEP_NUM_THREADS"] == str(expected)


# Deaths and restarts.


def digest(out):
    return re.search(r"digest (\w+)", out)[1]


@needs_mpi
def test_a_killed_job_goes_on_from_its_checkpoint(run):
    """A rank is killed in each of two attempts; the bits are those of a job without deaths, of any number of ranks."""
    _, out, _ = run("--ranks", 1, TRAINING, "whole.npz", 20)
    whole = digest(out)
    random = Random()
    step, rank = random.randrange(6, 20), random.randrange(3)
    code, out, err = run("--ranks", 3, "--restarts", 2, TRAINING, "killed.npz", 20, f"1,{step},{rank}")
    assert code == 0, err
    begins = sorted(re.findall(r"attempt (\d) rank (\d) of 3 from (\d+)", out))
    saved = str((step - 1) // 5 * 5)
    assert begins == [*(("1", str(k), "0") for k in range(3)), *(("2", str(k), saved) for k in range(3))], (step, rank)
    assert digest(out) == whole, (step, rank)
    assert "run: starts again with 3 ranks, restart 1 of 2" in err


@needs_mpi
def test_a_number_of_ranks_that_dies_twice_gets_smaller(run):
    code, out, err = run("--ranks", 3, "--least-ranks", 2, "--restarts", 5, "program.py", program="""
from mpi4py import MPI
if MPI.COMM_WORLD.size == 3:
    MPI.COMM_WORLD.Abort(7)
else:
    print(MPI.COMM_WORLD.size)
""")  # fmt: skip
    assert (code, out) == (0, "2\n2\n"), err
    assert re.findall(r"starts again with (\d) ranks", err) == ["3", "2"]


def test_restarts_are_used_up(run):
    code, out, err = run("--ranks", 1, "--restarts", 2, "program.py", program="print('here')\nraise SystemExit(5)")
    assert (code, out) == (5, "here\n" * 3)
    assert "restart 2 of 2" in err


HALF_DEAD = """
import subprocess, sys
_, ranks, option, file, *program = sys.argv[1:]
lines = open(file).read().replace(" slots=", ":").split()
print("on", *lines, flush=True)
if "dead:1" in lines or "dead:2" in lines:
    sys.exit(1)
if program[0] != "true":
    sys.exit(subprocess.run(program).returncode)
"""


@needs_mpi
@pytest.mark.parametrize(
    ("hosts", "least", "code", "places"),
    [
        ("dead:1,a:2,b:1", 2, 0, ["dead:1 a:2", "a:2 b:1"]),  # b was spare
        ("a:1,dead:2", 1, 0, ["a:1 dead:2", "a:1"]),
        ("a:1,dead:2", 2, 2, ["a:1 dead:2"]),
    ],
)
def test_hosts_that_give_no_answer_are_left_out(run, tmp_path, hosts, least, code, places):
    (tmp_path / "half_dead.py").write_text(HALF_DEAD)
    words = ["--ranks", 3, "--least-ranks", least, "--restarts", 1, "--hosts", hosts]
    words += ["--mpiexec", f"{sys.executable} half_dead.py"]
    found, out, err = run(*words, "program.py", program="print('fine')")
    if mpiexec.find().family == "Open MPI":
        pytest.skip("the stand-in reads no options of Open MPI")
    assert found == code, err
    assert [line[3:] for line in out.splitlines() if line.startswith("on ")] == places
    assert out.count("fine") == (code == 0)
    assert "run: dead: no answer, " in err


# Signals, and what is left.

WAIT = """
import os, time
from mpi4py import MPI
print(os.getpid())
while True:
    time.sleep(0.01)
    MPI.COMM_WORLD.Barrier()
"""


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_ranks_once(start, number):
    process = start("--ranks", 3, "--restarts", 3, "program.py", program=WAIT)
    ranks = first_lines(process, 3)
    begin = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert time.monotonic() - begin < 8
    assert err.endswith(f"run: ended by {signal.Signals(number).name}\n")
    assert "Traceback" not in err
    assert "starts again" not in err
    assert gone(ranks)


@needs_mpi
def test_a_rank_that_does_not_listen_is_killed_by_the_second_signal(start):
    program = "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('heard', flush=True))" + WAIT
    process = start("--ranks", 2, "program.py", program=program)
    ranks = first_lines(process, 2)
    process.send_signal(signal.SIGINT)
    if mpiexec.find().family != "Open MPI":  # which sends SIGTERM
        while process.stdout.readline() != "heard\n":
            pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=8)
    assert process.returncode == 130
    assert gone(ranks)


@needs_mpi
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_program_may_save_when_it_is_told_to_end(start, name):
    if name == "SIGTERM" and mpiexec.find().family == "Open MPI":
        pytest.skip("Open MPI kills its ranks a moment after SIGTERM")
    program = f"""
import signal, sys, time
from mpi4py import MPI
stop = []
signal.signal(signal.{name}, lambda *_: stop.append(1))
MPI.COMM_WORLD.Barrier()
print("ready")
while not MPI.COMM_WORLD.allreduce(len(stop)):
    time.sleep(0.01)
print("saved")
"""
    process = start("--ranks", 2, "program.py", program=program)
    assert first_lines(process, 2) == ["ready"] * 2
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "saved\n" * 2), err


@needs_linux
@needs_mpi
def test_ranks_end_with_the_command(start):
    process = start("--ranks", 2, "program.py", program=WAIT)
    ranks = first_lines(process, 2)
    files = {name for rank in ranks for name in shared_files(rank)}
    process.kill()
    assert gone(ranks)
    for name in files:  # which the command would have removed
        (SHARED / name).unlink(missing_ok=True)


@needs_linux
@needs_mpi
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "pass"])
def test_nothing_is_left(run, end):
    """Neither shared memory, also of the program's own, nor processes that a rank has started."""
    program = f"""
import os, subprocess, sys, time
from multiprocessing import resource_tracker, shared_memory
from mpi4py import MPI
world = MPI.COMM_WORLD
if world.rank == 1:
    own = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(own._name, "shared_memory")
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    maps = open("/proc/self/maps").read().splitlines()
    files = {{line.split("/dev/shm/")[1] for line in maps if "/dev/shm/" in line and "(deleted)" not in line}}
    print(child.pid, *files)
    time.sleep(0.3)
    {end}
world.Barrier()
"""
    code, out, _ = run("--ranks", 2, "program.py", program=program)
    assert bool(code) == (end != "pass")
    child, *files = out.split()
    assert files
    assert not [name for name in files if (SHARED / name).exists()]
    assert gone([child])


@needs_linux
@needs_mpi
def test_memory_of_others_is_left_alone(run):
    """A file that another process makes while the job runs, and one that it still has mapped, stay."""
    program = """
import os, time
from multiprocessing import resource_tracker, shared_memory
from mpi4py import MPI
other = shared_memory.SharedMemory(name=os.environ["OTHER"])
resource_tracker.unregister(other._name, "shared_memory")
open("/dev/shm/" + os.environ["OTHER"] + "-file", "w").close()
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""
    from multiprocessing.shared_memory import SharedMemory

    theirs = SharedMemory(create=True, size=4096)
    try:
        run("--ranks", 2, "program.py", program=program, OTHER=theirs.name)
        assert (SHARED / theirs.name).exists()
        assert (SHARED / f"{theirs.name}-file").exists()
    finally:
        theirs.close()
        theirs.unlink()
        (SHARED / f"{theirs.name}-file").unlink(missing_ok=True)


# Errors.


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["program.py"], "--ranks is missing, expected how many"),
        (["--ranks", 0, "program.py"], "--ranks is 0, expected at least 1"),
        (["--ranks", 2], "program is missing, expected a script, or -m and a module"),
        (["--ranks", 2, "-m"], "program is missing, expected a script, or -m and a module"),
        (["--ranks", 2, "absent.py"], "program is absent.py, expected a script that exists"),
        (["--ranks", 2, "--restarts", -1, "program.py"], "--restarts is -1, expected at least 0"),
        (["--ranks", 2, "--threads", 0, "program.py"], "--threads is 0, expected 1 to 1024"),
        (["--ranks", 2, "--least-ranks", 3, "program.py"], "--least-ranks is 3, expected 1 to 2, as --ranks says"),
        (["--ranks", 3, "--hosts", "a:1,b:1", "program.py"], "--hosts has slots for 2 ranks, expected 3"),
        (["--ranks", 3, "--hosts", "a,,b", "program.py"], "--hosts is 'a,,b', expected names"),
        (["--ranks", 3, "--hosts", "a:x", "program.py"], "--hosts has 'a:x', expected a name, or name:2 for two ranks"),
        (["--ranks", 3, "--hosts", "a,b,a", "program.py"], "--hosts has a twice, expected it once"),
    ],
)
def test_arguments(tmp_path, monkeypatch, capsys, words, error):
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    Path("program.py").touch()
    with pytest.raises(SystemExit) as code:
        launch.main([str(word) for word in words])
    assert code.value.code == 2
    assert error in capsys.readouterr().err


def test_a_job_of_slurm_says_how_many(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "6")
    assert launch._options([__file__]).ranks == 6
    assert launch._options(["--ranks", "2", __file__]).ranks == 2


def test_several_copies_by_srun_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(SystemExit):
        launch._options(["--ranks", "2", __file__])
    assert "this command was started 2 times by srun, expected once" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert launch._options(["--ranks", "2", __file__]).ranks == 2


@pytest.mark.parametrize("family", ["MPICH", "Open MPI", "Intel MPI"])
def test_srun_ends_all_ranks_when_one_is_killed(family):
    starter = mpiexec.Mpiexec(("/usr/bin/srun", "--mpi=pmi2"), family)
    assert starter.variables() == {"SLURM_KILL_BAD_EXIT": "1"}
    environment = launch._environment({"SLURM_KILL_BAD_EXIT": "0"}, 2, [], None, 1, starter)
    assert environment["SLURM_KILL_BAD_EXIT"] == "0"


def test_hosts_and_their_slots(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# all\na slots=2\n\nb:1  # small\nc\n")
    hosts = mpiexec.hosts_in(str(file))
    assert hosts == [Host("a", 2), Host("b", 1), Host("c")]
    assert launch._with_slots(hosts, 8) == [Host("a", 2), Host("b", 1), Host("c", 5)]
    assert launch.placement(6, launch._with_slots(hosts, 8)) == [Host("a", 2), Host("b", 1), Host("c", 3)]
    assert launch._with_slots(mpiexec.hosts_in("a,b"), 3) == [Host("a", 2), Host("b", 2)]


def test_a_missing_mpi_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(mpiexec, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r'needs mpi4py and an MPI: python -m pip install "fusedstep\[mpi\]"'):
        mpiexec.find()


@pytest.mark.parametrize(
    ("vendor", "text", "family"),
    [
        ("MPICH", "HYDRA build details:", "MPICH"),
        ("MVAPICH", "HYDRA build details:", "MPICH"),
        ("Open MPI", "mpirun (Open MPI) 4.1.4", "Open MPI"),
        ("Intel MPI", "Intel(R) MPI Library for Linux* OS", "Intel MPI"),
        ("MPICH", "mpirun (Open MPI) 4.1.4", None),
        ("Open MPI", "HYDRA build details:", None),
    ],
)
def test_the_mpiexec_is_that_of_the_library(monkeypatch, tmp_path, vendor, text, family):
    """The one beside the library comes before others, and one of another family is passed over."""
    prefix = tmp_path / "cluster"
    for folder in (prefix / "bin", tmp_path / "path"):
        folder.mkdir(parents=True)
        (folder / "mpiexec").write_text(f"#!/bin/sh\necho '{text}'\n")
        (folder / "mpiexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "none"))
    monkeypatch.setattr(mpiexec, "_library", lambda: (vendor, prefix / "lib" / "libmpi.so.12"))
    if family:
        assert mpiexec.find() == mpiexec.Mpiexec((str(prefix / "bin" / "mpiexec"),), family)
    else:
        with pytest.raises(RuntimeError, match=f"mpi4py loads {vendor} .*, and no mpiexec of {vendor} was found"):
            mpiexec.find()


@needs_mpi
def test_an_environment_with_two_mpis_is_asked(monkeypatch, tmp_path):
    """With one library beside the mpiexec, nobody need be asked; with two, mpi4py is."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib" / "libmpi.so.12").touch()
    (tmp_path / "bin" / "mpiexec").write_text("#!/bin/sh\necho HYDRA\n")
    (tmp_path / "bin" / "mpiexec").chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert mpiexec._in_environment() == mpiexec.Mpiexec((str(tmp_path / "bin" / "mpiexec"),), "MPICH")
    monkeypatch.setenv("MPI4PY_LIBMPI", "/opt/libmpi.so")
    assert mpiexec._in_environment() is None
    monkeypatch.delenv("MPI4PY_LIBMPI")
    (tmp_path / "lib" / "libmpi.so.40").touch()
    assert mpiexec._in_environment() is None
