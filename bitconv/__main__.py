"""`python -m bitconv` is the command `bitconv`."""

from bitconv.cli import main

main()
