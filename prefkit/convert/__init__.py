"""Configs of other trainers → options of prefkit. A file a trainer (trainers/), one engine.

trainers/    which of their names is which of ours, as tables
own_keys.py  the keys of prefkit's own rooms in other trainers
rules.py     what a line of a table may say
draft.py     what becomes of each key of one config, each accounted for once
engine.py    whose config it is, and its translation
report.py    the translation for people; the config file of it
hints.py     the same tables, for a name of theirs where one of ours belongs
"""
