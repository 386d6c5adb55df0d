"""Does everything name the same winner, also where it is not the trial that led before the final round of judging?

python benchmarks/one_winner.py --studies 5

Runs studies whose judge first sees one example and then all examples of the finalists, and gives other verdicts in each
study, so that some winners differ from the first leader. The winner is read from the API, the page, the CSV, MLflow's
tags, description and registered model, the log and the folder `best`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from states import JUDGED, fill_project, serving


def main() -> None:
    """Run the studies and print who won."""
    from tests.judges.wire import Request, judge_server
    from tests.service.one_winner import first_leader, winners

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=5)
    options = parser.parse_args()
    study = 0

    def plan(request: Any, _: int) -> str:
        other = Request(request.service, request.system, f"{study}{request.user}", {}, {})
        return "says " + json.dumps(other.verdict())

    faults = different = 0
    with tempfile.TemporaryDirectory() as name, judge_server(plan) as judge:
        settings = (f"judges.gemini.base_url={judge.gemini}", "judge.finalists=3", "judge.n_examples=1")
        words = [word for setting in settings for word in ("--set", setting)]
        with serving(Path(name), *words) as states:
            fill_project(states)
            for study in range(options.studies):
                job = states.start(JUDGED, f"Study {study}")
                states.wait_for(job, "complete", "failed")
                found, leader = winners(states.api, job, states.folder), first_leader(states.api, job)
                faults += len(set(found.values())) > 1
                different += leader not in found.values()
                print(f"first led by trial {leader}: {found}", flush=True)
    print(f"{options.studies} studies, {different} won by another trial than the first leader, {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
