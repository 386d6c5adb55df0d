"""Does every answer of the API agree with its OpenAPI description? Thousands of requests made up by schemathesis.

pip install -c constraints.txt 'lorahydra[benchmark]'
python benchmarks/openapi.py --cases 150

Serves fine-tunes that have ended (see states.py) and runs schemathesis on that server: valid and invalid values of
every parameter and body, and chains of requests. A server error (5xx), a status, a content type or a body that is not
described is a failure. `--cases` is the number of cases for each of some thirty operations in the fuzzing phase.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

THIS = Path(__file__).resolve()
ENDED = "ENDED_JOBS"
"""Variable with the fine-tunes that the requests are about."""
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "missing_required_header", "unsupported_method"),
    *("allow_header_conformance", "use_after_free", "ensure_resource_availability"),
)
SHARE = 4
"""One of so many requests keeps the id that schemathesis made up; the others ask for something that there is."""
SPARE = 3
LONGEST = 200
"""Most characters of the name of a model."""
CHANGING = ("cancel", "resume", "continue", "delete")
"""What the fine-tunes that have ended are spared, because the others ask about them."""


def main() -> None:
    """Serve, and let schemathesis ask."""
    from states import UNJUDGED, fill_ended, serving

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="path of the only operation, as in the description")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as states:
        fill_ended(states)
        spare = [states.start(UNJUDGED, f"Лишняя {number}") for number in range(SPARE)]
        for job in spare:
            states.api.post(f"/fine-tunes/{job}/cancel").raise_for_status()
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{states.api.base_url}openapi.json"),
            *("--checks", ",".join(CHECKS), "--max-examples", str(options.cases), "--seed", str(options.seed)),
            *("--workers", str(options.workers), "--continue-on-failure", "--request-timeout", "60", "--no-color"),
            *(("--include-path", options.only) if options.only else ()),
        ]
        # Those that cannot be resumed: a request for the events of one that waits would be answered much later.
        ended = f"{states.jobs['complete']},{states.jobs['judged']},{spare[0]}"
        environment = os.environ | {"SCHEMATHESIS_HOOKS": THIS.stem, "PYTHONPATH": str(THIS.parent), ENDED: ended}
        done = subprocess.run(command, env=environment, cwd=name, check=False)
        for job in states.api.get("/fine-tunes", params={"limit": 100}).json()["items"]:
            if job["can_cancel"]:
                states.api.post(f"/fine-tunes/{job['id']}/cancel")
        log = (Path(name) / "serve.txt").read_text("utf-8")
        print("Traceback in the server's log" if "Traceback" in log else "no traceback in the server's log")
    sys.exit(done.returncode)


if ENDED in os.environ:
    import schemathesis

    *jobs, spare = (int(number) for number in os.environ[ENDED].split(","))

    @schemathesis.hook
    def map_path_parameters(context: Any, path_parameters: dict[str, Any]) -> dict[str, Any]:
        """Ask for things that there are; those that are deleted are asked for nothing else."""
        number = (path_parameters or {}).get("job_id")
        if not isinstance(number, int) or isinstance(number, bool) or number % SHARE == 0:
            return path_parameters
        operation = f"{context.operation.method} {context.operation.path}".lower()
        if any(change in operation for change in CHANGING):
            return {**path_parameters, "job_id": spare + number % SPARE}
        return {**path_parameters, "job_id": jobs[number % len(jobs)]}

    @schemathesis.hook
    def map_body(context: Any, body: Any) -> Any:
        """Ask a model that there is, unless its name is what is wrong with the body."""
        model = body.get("model") if isinstance(body, dict) else None
        if context.operation.path.endswith("/completions") and isinstance(model, str) and len(model) <= LONGEST:
            return {**body, "model": f"fine-tune-{jobs[0]}"}
        return body


if __name__ == "__main__":
    main()
