"""Files that are whole or absent, journals that survive a kill, and progress that is told."""
