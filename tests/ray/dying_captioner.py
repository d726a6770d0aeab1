"""Apart from the tests, since Ray's workers import it by the name of its file."""

import os
from pathlib import Path

from ray_app.stages.caption.batches import CaptionUDF


class DyingUDF(CaptionUDF):
    """A model whose process dies at one picture."""

    def __init__(self, cfg, cpu_threads, log):
        super().__init__(cfg, cpu_threads)
        with Path(log).open("a") as file:
            file.write("started\n")

    def __call__(self, block):
        if any(row == 7 for row in block["width"].to_pylist()):
            os._exit(1)
        return super().__call__(block)
