"""The first wrong step of a solution: by program, by a judge, or by rollouts."""

from prefkit.pairs.localise.verdict import Verdict

__all__ = ["Verdict"]
