"""``python -m tests.fs.served MOUNTPOINT [--allow-other] [--real-clock]``: serve the machine of fake.py."""

from __future__ import annotations

import sys

from kmemd.daemon import mountpoint
from kmemd.daemon.serve import Options, serve
from tests.fs.fake import FakeSystem


def main() -> None:
    try:
        path = mountpoint.prepare(sys.argv[1])
    except mountpoint.MountError as error:
        sys.exit(str(error))
    serve(FakeSystem(), path, Options("--allow-other" in sys.argv, "--real-clock" in sys.argv))


if __name__ == "__main__":
    main()
