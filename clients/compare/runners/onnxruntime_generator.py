"""onnxruntime-genai: a static batch of the base alone. Its continuous batching needs a GPU."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .protocol import Answer, Outcome, RunClock, Setup, Workload, made_once, serve

BLOCK, ACCURACY = "int4_block_size=32", "int4_accuracy_level=4"
MODEL = "int4-b32"


class OnnxRuntimeGenerator:
    """One generator for each run: all its prompts have one length."""

    def prepare(self, setup: Setup) -> None:
        made_once(Path(setup.converted) / MODEL, partial(build, setup.base))

    def start(self, setup: Setup) -> dict[str, str]:
        import onnxruntime_genai as genai

        config = genai.Config(str(Path(setup.converted) / MODEL))
        self._model: Any = genai.Model(config)
        return {"version": f"onnxruntime-genai {genai.__version__}"}

    def run(self, workload: Workload) -> Outcome:
        import numpy
        import onnxruntime_genai as genai

        length = len(workload.requests[0].prompt)
        answers = [Answer() for _ in workload.requests]
        clock = RunClock()
        parameters = genai.GeneratorParams(self._model)
        # min_length is what keeps ends of text from stopping it.
        total = length + workload.new_tokens
        parameters.set_search_options(
            batch_size=len(answers), do_sample=False, min_length=total, max_length=total, early_stopping=False
        )
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(numpy.array([request.prompt for request in workload.requests], dtype=numpy.int32))
        while not generator.is_done():
            generator.generate_next_token()
            seconds = clock.seconds()
            for answer, token in zip(answers, generator.get_next_tokens(), strict=True):
                answer.tokens.append(int(token))
                answer.times.append(seconds)
        return Outcome(answers)

    def close(self) -> None:
        """The model ends with the process."""


def build(base: str, path: Path) -> None:
    """Converts the base by the package's own builder; seconds."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", base, "-o", str(path)]
    command += ["-p", "int4", "-e", "cpu", "-c", str(path.with_name("builder-cache"))]
    command += ["--extra_options", BLOCK, ACCURACY]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    serve(OnnxRuntimeGenerator())
