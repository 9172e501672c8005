"""All ways by name, in the order of the tables: ours, plain torch, the peers, the bare products."""

from benchmarks.gemms import GEMMS
from benchmarks.ways.base import Outcome, Unavailable, Way
from benchmarks.ways.ours import OURS
from benchmarks.ways.peers import PEERS
from benchmarks.ways.plain import PLAIN

WAYS: dict[str, Way] = {way.name: way for way in (*OURS, *PLAIN, *PEERS, *GEMMS)}

__all__ = ["WAYS", "Outcome", "Unavailable", "Way"]
