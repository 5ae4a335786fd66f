"""`python -m proxygml`, and `accelerate launch -m proxygml train ...` for several processes."""

from proxygml.cli.main import main

main()
