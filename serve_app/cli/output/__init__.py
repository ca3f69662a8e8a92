"""How the command line shows things: progress, tables and files."""
