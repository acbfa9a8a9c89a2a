"""`python -m eqx_vit`: the same as `eqx-vit`."""

import sys

from eqx_vit_command import main

if __name__ == "__main__":
    sys.exit(main())
