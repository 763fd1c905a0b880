"""Which mpiexec belongs to the MPI library that mpi4py loads, and what to ask of it: ranks, hosts, variables."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Host", "Mpiexec", "find", "hosts_in"]

INSTALL = 'python -m pip install "fusedstep[mpi]"'

# What tells of which family an mpiexec is, in what it prints for --version. Intel's may have MPICH's words too.
_FAMILIES = {"Open MPI": ("Open MPI", "OpenRTE"), "Intel MPI": ("Intel",), "MPICH": ("HYDRA", "MPICH")}

# The libraries of a family by their interface, whose number the file has; Intel's is that of MPICH.
_LIBRARIES = {"Open MPI": ("libmpi.so.40", "libmpi.40.dylib"), "MPICH": ("libmpi.so.12", "libmpi.12.dylib")}

# Asked in a process of its own: loading an MPI library changes the environment and the handling of signals.
_LIBRARY = """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
print(MPI.get_vendor()[0])
try:
    with open("/proc/self/maps") as maps:
        print(next(line.split(maxsplit=5)[5].strip() for line in maps if "/libmpi" in line))
except (OSError, StopIteration):
    pass
"""


@dataclass(frozen=True)
class Host:
    """A machine, and how many ranks it takes; None for a share of all ranks."""

    name: str
    slots: int | None = None


@dataclass(frozen=True)
class Mpiexec:
    """A command that starts ranks, and its family: "MPICH", "Open MPI" or "Intel MPI"."""

    words: tuple[str, ...]
    family: str

    def command(
        self,
        ranks: int,
        program: Sequence[str],
        hosts: Sequence[Host],
        variables: Mapping[str, str],
        folder: Path | None,
    ) -> list[str]:
        """
        Return the command line that starts a job.

        Parameters
        ----------
        ranks : int
            How many.
        program : sequence of str
            What each rank runs.
        hosts : sequence of Host
            Where, in this order, each with its slots; none for this machine, or for what a batch system has granted.
        variables : mapping of str to str
            What the ranks on other machines need of the environment of this process. MPICH and Intel MPI send all of
            it; Open MPI sends what it is told to.
        folder : Path or None
            Where a file of hosts is written; needed if there are hosts.
        """
        words = [*self.words, "-n", str(ranks)]
        if hosts and folder:
            form, option = {
                "Open MPI": ("{} slots={}", "--hostfile"),
                "Intel MPI": ("{}:{}", "-machinefile"),
                "MPICH": ("{}:{}", "-f"),
            }[self.family]
            file = folder / f"{hosts[0].name}-{ranks}"
            file.write_text("".join(form.format(host.name, host.slots) + "\n" for host in hosts))
            words += [option, str(file)]
            if self.family == "Open MPI":
                for name, value in variables.items():
                    words += ["-x", f"{name}={value}"]
        return [*words, *program]

    def variables(self) -> dict[str, str]:
        """Return what the environment of the command should have, where the user has not set it already."""
        if os.path.basename(self.words[0]) == "srun":
            return {"SLURM_KILL_BAD_EXIT": "1"}  # the other ranks would wait for one that was killed
        if self.family == "Intel MPI":
            return {"I_MPI_PIN": "0"}  # a rank would be bound to one core, with all of its threads
        if self.family == "MPICH":
            return {}
        found = {
            "PRTE_MCA_hwloc_default_binding_policy": "none",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more ranks than cores are no error
            "OMPI_MCA_hwloc_base_binding_policy": "none",  # the same for Open MPI 4
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
        }
        if os.geteuid() == 0:  # in containers, mostly
            found |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return found


def find(chosen: str | None = None) -> Mpiexec:
    """
    Find the mpiexec that belongs to the MPI library of mpi4py.

    It is looked for beside the library, then in the environment of the interpreter, then in PATH. One of another family
    is passed over: with it, every rank would train alone.

    Parameters
    ----------
    chosen : str, optional
        The command to use, with arguments, in place of one that is found.

    Raises
    ------
    RuntimeError
        If mpi4py, an MPI library or an mpiexec of its family is missing; the message says how to install them.
    """
    if chosen is None and (found := _in_environment()):
        return found
    vendor, library = _library()
    family = next((name for name in _FAMILIES if name == vendor), "MPICH")  # MVAPICH and others come from MPICH
    if chosen is not None:
        words = shlex.split(chosen)
        if not words or not shutil.which(words[0]):
            raise RuntimeError(f"--mpiexec is {chosen!r}, expected a command that can be run")
        return Mpiexec(tuple(words), family)
    others = []
    for path in dict.fromkeys(_candidates(library)):
        if (kind := _family(path)) == family:
            return Mpiexec((path,), family)
        others.append(f"{path} is of {kind or 'another kind'}")
    raise RuntimeError(
        f"mpi4py loads {vendor} ({library or 'place unknown'}), and no mpiexec of {family} was found "
        f"({'; '.join(others) or 'none of any kind'}): load the module of your cluster that has it, name one with "
        f"--mpiexec, or install one: {INSTALL}"
    )


def _in_environment() -> Mpiexec | None:
    """
    Return the mpiexec in the environment of the interpreter, if there is one library beside it, and of its family.

    That is where packages of PyPI and conda put both, and where mpi4py looks for the library first, so that it need not
    be asked, which takes as long as all the rest.
    """
    if find_spec("mpi4py") is None or any(name.startswith("MPI4PY_") for name in os.environ):
        return None
    files = [path.name for path in (Path(sys.prefix) / "lib").glob("libmpi.*")]
    families = {family for file in files for family, words in _LIBRARIES.items() if file in words}
    path = Path(sys.prefix) / "bin" / "mpiexec"
    if len(families) != 1 or not path.exists():
        return None
    family = _family(str(path))
    if family is None or families != {"Open MPI" if family == "Open MPI" else "MPICH"}:
        return None
    return Mpiexec((str(path),), family)


def _library() -> tuple[str, Path | None]:
    """Return the vendor of the MPI library that mpi4py loads, and its file where that can be told."""
    if find_spec("mpi4py") is None:
        raise RuntimeError(f"more than one rank needs mpi4py and an MPI: {INSTALL}")
    try:
        asked = subprocess.run([sys.executable, "-c", _LIBRARY], capture_output=True, text=True, timeout=60)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise RuntimeError("mpi4py has not loaded its MPI library in 60 s") from None
    if asked.returncode:
        why = asked.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise RuntimeError(f"mpi4py cannot load an MPI library ({why[0]}): {INSTALL}")
    vendor, *place = asked.stdout.splitlines()
    return vendor, Path(place[0]) if place else None


def _candidates(library: Path | None) -> Iterator[str]:
    """Yield each mpiexec that is there, the likeliest first."""
    folders = [above / "bin" for above in library.parents[1:4]] if library else []
    folders += [Path(prefix) / "bin" for prefix in (sys.prefix, sys.base_prefix)]
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in folders:
        for name in ("mpiexec", "mpiexec.hydra", "mpiexec.mpich", "mpiexec.openmpi"):
            if found := shutil.which(str(folder / name)):
                yield found


def _family(path: str) -> str | None:
    """Return the family of an mpiexec by what it says of its version."""
    try:
        said = subprocess.run(  # noqa: S603 (a program that is called mpiexec)
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = said.stdout + said.stderr
    return next((family for family, words in _FAMILIES.items() if any(word in text for word in words)), None)


def hosts_in(text: str) -> list[Host]:
    """
    Return the hosts that an option names.

    Parameters
    ----------
    text : str
        Names with commas between them, or the path of a file with a name on each line. ``name:2`` and ``name slots=2``
        take two ranks; in a file, what follows ``#`` is a comment.

    Raises
    ------
    ValueError
        If a host has no name, no whole number of slots of at least 1, or is named twice.
    """
    if os.path.isfile(text):
        lines = [line.partition("#")[0].strip() for line in Path(text).read_text().splitlines()]
    else:
        lines = text.split(",")
        if "" in (line.strip() for line in lines):
            raise ValueError(f"--hosts is {text!r}, expected names with commas between them, or a file that exists")
    hosts = []
    for line in filter(None, lines):
        name, _, slots = line.replace(" slots=", ":").partition(":")
        name, slots = name.strip(), slots.strip()
        if not name or " " in name or (slots and not (slots.isdecimal() and int(slots) >= 1)):
            raise ValueError(f"--hosts has {line!r}, expected a name, or name:2 for two ranks")
        hosts.append(Host(name, int(slots) if slots else None))
    if not hosts:
        raise ValueError(f"--hosts is {text!r}, expected at least one name")
    for host in hosts:
        if sum(host.name == other.name for other in hosts) > 1:
            raise ValueError(f"--hosts has {host.name} twice, expected it once, with :2 for two ranks")
    return hosts
