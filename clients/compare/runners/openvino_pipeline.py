"""OpenVINO GenAI's continuous batching. Adapters belong to the whole pipeline: mixed requests go group by group."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .protocol import Answer, Outcome, Request, RunClock, Setup, Workload, made_once, serve

CACHE_GIB = 1
CONVERT = "text-generation-with-past", "int4", "64"  # task, weights, group size


class OpenVinoPipeline:
    """Requests of one adapter are batched; before the next group the pipeline is switched to its adapter."""

    def prepare(self, setup: Setup) -> None:
        made_once(Path(setup.converted) / "int4-g64", partial(export, setup.base))

    def start(self, setup: Setup) -> dict[str, str]:
        import numpy
        import openvino
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_seqs = setup.max_concurrency
        scheduler.enable_prefix_caching = False
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": setup.threads}
        files = {name: Path(setup.adapters[name]) / "adapter_model.safetensors" for name in setup.resident}
        self._adapters = {name: genai.Adapter(str(file)) for name, file in files.items()}
        if self._adapters:  # all that will ever be used must be declared here
            settings["adapters"] = genai.AdapterConfig(list(self._adapters.values()))
        model = str(Path(setup.converted) / "int4-g64")
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", settings)
        self._array, self._tensor = numpy.array, openvino.Tensor
        return {"version": f"openvino {openvino.__version__}, openvino-genai {genai.__version__}"}

    def run(self, workload: Workload) -> Outcome:
        answers = [Answer() for _ in workload.requests]
        clock = RunClock()
        groups: dict[str | None, list[int]] = {}
        for number, request in enumerate(workload.requests):
            groups.setdefault(request.adapter, []).append(number)
        for adapter, numbers in groups.items():
            self._switch(adapter, workload.requests[numbers[0]])
            self._run_group(workload, numbers, answers, clock)
        return Outcome(answers)

    def close(self) -> None:
        """The pipeline ends with the process."""

    def _run_group(self, workload: Workload, numbers: list[int], answers: list[Answer], clock: RunClock) -> None:
        config = self._config(workload.new_tokens)
        handles = {
            number: self._pipeline.add_request(number, self._ids(workload.requests[number]), config)
            for number in numbers
        }
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            seconds = clock.seconds()
            for number, handle in handles.items():
                if handle.can_read():
                    for output in handle.read().values():
                        answers[number].tokens += output.generated_ids
                        answers[number].times += [seconds] * len(output.generated_ids)

    def _switch(self, adapter: str | None, request: Request) -> None:
        """add_request takes no notice of adapters: they stay as the last generate left them."""
        if not self._adapters:
            return
        import openvino_genai as genai

        config = self._config(1)
        config.adapters = genai.AdapterConfig([self._adapters[adapter]] if adapter else [])
        self._pipeline.generate([self._ids(request)], [config])

    def _config(self, new_tokens: int) -> Any:
        import openvino_genai as genai

        config = genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.do_sample = False
        config.ignore_eos = True
        return config

    def _ids(self, request: Request) -> Any:
        return self._tensor(self._array([request.prompt], dtype="int64"))


def export(base: str, path: Path) -> None:
    """Converts the base by optimum-cli of this environment; a minute."""
    task, weights, group = CONVERT
    program = Path(sys.executable).parent / "optimum-cli"
    command = [str(program), "export", "openvino", "--model", base, "--task", task, "--weight-format", weights]
    command += ["--group-size", group, "--ratio", "1.0", "--sym", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    serve(OpenVinoPipeline())
