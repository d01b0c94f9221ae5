"""The command line: one file per command. `main` finds them and turns errors into one line and an exit code."""
