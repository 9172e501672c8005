"""The command line: one file a command, all read by one parser."""
