"""`python -m roost.cli`: the same program as `roost`."""

from roost.cli.main import main

main(prog_name="roost")
