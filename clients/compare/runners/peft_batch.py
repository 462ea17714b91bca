"""transformers with PEFT: a static batch, each row with its own adapter through `adapter_names`."""

from typing import Any

from .protocol import Answer, Outcome, RunClock, Setup, Workload, serve


class PeftBatch:
    """Adapters are loaded beside the first one under their names; the base alone has no PEFT layers at all."""

    def __init__(self) -> None:
        self._adapters: dict[str, str] = {}

    def prepare(self, setup: Setup) -> None:
        """Nothing: it reads the Hugging Face directory as it is."""

    def start(self, setup: Setup) -> dict[str, str]:
        import peft
        import torch
        import transformers

        torch.set_num_threads(setup.threads)
        quantization = None
        if setup.variant == "nf4":
            quantization = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            setup.base, dtype=torch.bfloat16, quantization_config=quantization
        ).eval()
        self._model.generation_config.eos_token_id = None  # ends of text do not stop it
        self._adapters = setup.adapters
        for name in setup.resident:
            self._load(name)
        return {"version": f"transformers {transformers.__version__}, peft {peft.__version__}"}

    def run(self, workload: Workload) -> Outcome:
        import torch

        names = [request.adapter for request in workload.requests]
        mixed = {"adapter_names": [name or "__base__" for name in names]} if any(names) else {}
        prompts = torch.tensor([request.prompt for request in workload.requests])  # all of one length
        clock, times = RunClock(workload.loads), []

        def on_step(tokens: Any, scores: Any, **_: Any) -> Any:
            times.append(clock.seconds())
            clock.load_due(self._load)
            return torch.zeros(len(tokens), dtype=torch.bool)

        with torch.inference_mode():
            output = self._model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=workload.new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[on_step],
                **mixed,
            )
        rows = output[:, prompts.shape[1] :].tolist()
        return Outcome([Answer(row, list(times)) for row in rows], clock.loaded)

    def close(self) -> None:
        """Nothing runs beside it."""

    def _load(self, name: str) -> None:
        import peft

        if isinstance(self._model, peft.PeftModel):
            self._model.load_adapter(self._adapters[name], name)
        else:
            self._model = peft.PeftModel.from_pretrained(self._model, self._adapters[name], name).eval()


if __name__ == "__main__":
    serve(PeftBatch())
