"""``python -m delib``: the command line without installed scripts."""

from delib.cli import main

main()
