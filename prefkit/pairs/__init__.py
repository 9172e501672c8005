"""From questions to pairs: sample, grade, find the first wrong step, put it right, write rows."""
