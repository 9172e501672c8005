"""Trees of responses beside pairs one by one, in whole optimiser steps of real trainers.

python -m benchmarks.trees [--shape steps gsm8k all one] [--model FOLDER] [--rounds 5]
python -m benchmarks.trees --curve            # over depth and branching
"""
