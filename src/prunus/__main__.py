"""`python -m prunus`: the same as the `prunus` script."""

from prunus.cli import main

main()
