"""Parameters and gradients in memory that NumPy does not own: files, memory of several processes, buffers."""

from multiprocessing.shared_memory import SharedMemory

import numpy as np

import fusedstep as fs
from fusedstep import reference


def agree(p, g):
    q = np.array(p)
    opt, ref = fs.Adam(), reference.Adam()
    for _ in range(3):
        opt.step({"p": p}, {"p": g})
        ref.step({"p": q}, {"p": np.array(g)})
    assert (np.asarray(p) == q).all()
    return q


def test_a_file_in_memory_is_updated(tmp_path):
    p = np.memmap(tmp_path / "p", np.float32, "w+", shape=(30, 40))
    g = np.memmap(tmp_path / "g", np.float64, "w+", shape=(40, 30))
    g[...] = np.random.default_rng(0).standard_normal(g.shape)
    expected = agree(p, np.memmap(tmp_path / "g", np.float64, "r", shape=(40, 30)).T)
    p.flush()
    assert (np.fromfile(tmp_path / "p", np.float32).reshape(30, 40) == expected).all()


def test_memory_of_several_processes_is_updated():
    memory = SharedMemory(create=True, size=4 * 1000)
    try:
        p = np.ndarray(1000, np.float32, memory.buf)
        p[...] = 1
        other = SharedMemory(memory.name)
        seen = np.ndarray(1000, np.float32, other.buf)
        expected = agree(p, np.linspace(-1, 1, 1000))
        assert (seen == expected).all()
        del p, seen
        other.close()
    finally:
        memory.close()
        memory.unlink()


def test_a_buffer_of_python_is_updated():
    buffer = bytearray(4 * 100)
    expected = agree(np.frombuffer(buffer, np.float32), np.ones(100, np.float32))
    assert bytes(buffer) == expected.tobytes()
