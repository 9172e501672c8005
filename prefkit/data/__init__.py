"""Preference data: rows in any published format → pairs → token ids and weights → batches."""

from prefkit.data.batch.collators import PairCollator, SolutionCollator
from prefkit.data.dataset import PairDataset, prepare_pairs
from prefkit.data.formats.detect import ReadOptions, read_pairs
from prefkit.data.mismatched import with_mismatched
from prefkit.data.pair import Pair, PairBatch, Side, TokenizedPair, TokenizedSide, TokenWeights
from prefkit.data.report import DataReport
from prefkit.data.solutions import SolutionDataset, prepare_solutions
from prefkit.data.sources.files import Rows, load_rows
from prefkit.data.text.render import TokenizeOptions
from prefkit.data.tokens.tokenize import tokenize_pair
from prefkit.errors import TooLongError

__all__ = [
    "DataReport",
    "Pair",
    "PairBatch",
    "PairCollator",
    "PairDataset",
    "ReadOptions",
    "Rows",
    "Side",
    "SolutionCollator",
    "SolutionDataset",
    "TokenWeights",
    "TokenizeOptions",
    "TokenizedPair",
    "TokenizedSide",
    "TooLongError",
    "load_rows",
    "prepare_pairs",
    "prepare_solutions",
    "read_pairs",
    "tokenize_pair",
    "with_mismatched",
]
