"""What tests of steps on GPUs share: a stream whose work is recorded as a graph, and a machine with two devices."""

import pytest


class Recorder:
    """A stream beside the current one: work in it can be captured as a graph, and is awaited at the end of a block."""

    def __init__(self, cupy):
        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def __enter__(self):
        self.cupy.cuda.get_current_stream().synchronize()  # work of the block begins when its arrays are ready
        self.stream.__enter__()
        return self

    def __exit__(self, *error):
        self.stream.__exit__(*error)
        self.stream.synchronize()

    def capture(self, work):
        """Return the graph of what `work` does, and what `work` returned; the graph has not run yet."""
        self.stream.begin_capture()
        try:
            returned = work()
        finally:
            graph = self.stream.end_capture()
        return graph, returned

    def replay(self, graph):
        graph.launch(self.stream)


@pytest.fixture
def recorder(cupy):
    return Recorder(cupy)


@pytest.fixture
def devices(cupy):
    if hasattr(cupy, "emulator"):
        cupy.emulator.emulator_set_device_count(2)
    elif cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    yield [cupy.cuda.Device(i) for i in range(2)]
    if hasattr(cupy, "emulator"):
        cupy.emulator.emulator_set_device_count(1)
