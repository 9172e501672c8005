"""The policy that trains, its adapter and its frozen reference, as a run sets them up."""
