"""How long messages between two ranks take. The last line of the output is what was found."""

import json

import numpy as np
from computing import least
from mpi4py import MPI

from fusedstep import distributed


def messages(world: distributed.World) -> dict[str, float]:
    """Return the seconds of a message of 8 bytes, and the bytes per second that a rank sends while it receives."""
    other = 1 - world.rank
    small, large = ([np.zeros(size, np.uint8) for _ in range(2)] for size in (8, 1 << 26))

    def there_and_back() -> None:
        for is_sent in (world.rank == 0, world.rank == 1):
            ends = ([(other, small[0])], []) if is_sent else ([], [(other, small[1])])
            world.wait(world.start(*ends))

    def both_ways() -> None:
        world.wait(world.start([(other, large[0])], [(other, large[1])]))

    for step in (there_and_back, both_ways):
        step()
    return {"latency": least(there_and_back, 500) / 2, "bandwidth": large[0].nbytes / least(both_ways)}


if __name__ == "__main__":
    result = messages(distributed.world())
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(result))
