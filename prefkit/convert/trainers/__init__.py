"""The trainers whose configs are read, in the order in which hints name them."""

from prefkit.convert.trainers.axolotl import AXOLOTL
from prefkit.convert.trainers.llamafactory import LLAMA_FACTORY
from prefkit.convert.trainers.trl import TRL

TRAINERS = (TRL, LLAMA_FACTORY, AXOLOTL)
