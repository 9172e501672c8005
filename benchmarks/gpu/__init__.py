"""What one GPU can tell in nine minutes: `python -m benchmarks.gpu` (`make gpu`).

Each step is a process of its own under its own time limit, and what it found is on disk before the
next one starts, so that a crash costs one step and an interrupted run loses nothing that was
finished. `steps` lists them by value; `runner` runs one; `record` keeps and shows the results;
`wheels` brings the peers to a machine without a network. Everything else here is a step.
"""
