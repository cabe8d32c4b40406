"""`python -m timm_ghn_init`: the command line without its entry point, or a script with the sources registered."""

import sys

from .cli.program import main

sys.exit(main(sys.argv[1:]))
