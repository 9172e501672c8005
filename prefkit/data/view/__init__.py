"""Tokens as people see them: of a pair, and of a question's pairs as a tree."""

from prefkit.data.view.tokens import TokenView, view_pair
from prefkit.data.view.tree import QuestionView, view_question

__all__ = ["QuestionView", "TokenView", "view_pair", "view_question"]
