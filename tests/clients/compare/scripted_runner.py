"""A small real engine for tests of the protocol: started as a process, as a rival's runner is."""

import os
import sys
import time

from hotshoe.clients.compare.runners.protocol import Answer, Outcome, RunClock, Setup, Workload, serve


class ScriptedEngine:
    """Answers with the prompt's first token, counting up. Its variant makes it fail in one way or another."""

    def prepare(self, setup: Setup) -> None:
        if setup.variant == "unprepared":
            raise FileNotFoundError("no compiler")

    def start(self, setup: Setup) -> dict[str, str]:
        self._variant = setup.variant
        print("a library greets")  # must not disturb the answers
        return {"version": "1", "resident": ",".join(setup.resident)}

    def run(self, workload: Workload) -> Outcome:
        if self._variant == "crashes":
            print("the reason why", file=sys.stderr, flush=True)
            os._exit(7)
        clock, count = RunClock(workload.loads), workload.new_tokens - (self._variant == "short")
        answers = [Answer() for _ in workload.requests]
        for step in range(count):
            time.sleep(0.002)
            clock.load_due(lambda name: time.sleep(0.003))
            for answer, request in zip(answers, workload.requests, strict=True):
                answer.tokens.append(request.prompt[0] + step)
                answer.times.append(clock.seconds())
        return Outcome(answers, clock.loaded)

    def close(self) -> None:
        print("closed", file=sys.stderr)


if __name__ == "__main__":
    serve(ScriptedEngine())
