"""Many machines, the same bits: steps that are shared by ranks, and asynchronous training that can be replayed."""

from .asynchronous import Asynchronous
from .replay import replay
from .shard import Log

__all__ = ["Asynchronous", "Log", "replay"]
