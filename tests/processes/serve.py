"""python tests/processes/serve.py: `transformers serve` on a port that the system chooses.

It ends when its standard input does: with the process that started it, however that ends.
"""

import os
import sys
import threading


def end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    from transformers.cli.transformers import main

    sys.argv = ["transformers", "serve", "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    main()
