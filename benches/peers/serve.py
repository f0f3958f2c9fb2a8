"""The protocol between `compare` and a peer: one JSON object a line, a request on standard input, its answer on standard output.

    {"prepare": WORKLOAD}   build the model for one workload, warm up              -> {"ready": true, "loss": L or null}
    {"run": true}           one timed pass                                         -> {"seconds": S, "loss": L or null}
    {"memory": true}        the largest resident size of this process so far       -> {"peak_rss_bytes": N}

An error is {"error": TEXT}. The process ends when its input does.
"""

import json
import os
import sys
import traceback


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def serve(prepare):
    """Answers requests. `prepare(workload)` returns a function that makes one pass and returns (seconds, loss)."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    one_pass = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if "prepare" in request:
                one_pass = prepare(request["prepare"])
                # The pass that warms up is the one that every side makes from the same state.
                _, loss = one_pass()
                answer = {"ready": True, "loss": loss}
            elif "run" in request:
                seconds, loss = one_pass()
                answer = {"seconds": seconds, "loss": loss}
            else:
                answer = {"peak_rss_bytes": peak_rss_bytes()}
        except Exception as error:  # the other side decides what becomes of it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
