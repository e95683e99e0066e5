"""`python -m tests.fuzz.api SECONDS`: schemathesis on the live service, by the service's OpenAPI document.

No response may be a 5xx, and each must have a status, content type and schema of the document.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.targets.process import running_service
from tests.support.paths import ROOT

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


def main(seconds: int) -> int:
    """The exit status: 0 if no failure was found."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with running_service(folder / "service.log", data_dir=str(folder / "index")) as service:
            return subprocess.run(
                [
                    *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
                    *("--checks", ",".join(_CHECKS), "--max-time", str(seconds)),
                    *("--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.fuzz.media"},
                cwd=scratch,
                check=False,
            ).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
