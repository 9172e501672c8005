"""The first wrong step of a solution: by program, by a judge, or by rollouts."""

from prefkit.build.localise.verdict import Verdict

__all__ = ["Verdict"]
