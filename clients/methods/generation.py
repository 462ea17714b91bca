"""Asking the base model, through adapters or alone."""

from collections.abc import Sequence
from typing import Unpack

from hotshoe.clients import messages
from hotshoe.clients.channels import GENERATE_SECONDS, QUICK_SECONDS
from hotshoe.clients.connection import Connection
from hotshoe.clients.streams import AnswerStream
from hotshoe.protos.v1 import generation_pb2 as generation


class GenerationMethods(Connection):
    """Part of Client."""

    def generate(
        self,
        prompt: messages.Prompt,
        *,
        timeout: float | None = GENERATE_SECONDS,
        **options: Unpack[messages.GenerateOptions],
    ) -> generation.GenerateResponse:
        """Whole answers to `prompt`: text, token ids or chat messages. The options are GenerateOptions'."""
        request = messages.generate_request(prompt, options)
        return self._call(self._generation.Generate, request, timeout)

    def stream(
        self,
        prompt: messages.Prompt,
        *,
        timeout: float | None = GENERATE_SECONDS,
        **options: Unpack[messages.GenerateOptions],
    ) -> AnswerStream:
        """One answer to `prompt`, as it is decoded. The options are GenerateOptions'."""
        request = generation.StreamGenerateRequest(request=messages.generate_request(prompt, options))
        return AnswerStream(*self._opening(self._generation.StreamGenerate, request, timeout))

    def score(
        self,
        prompt: messages.Prompt,
        choices: Sequence[str],
        *,
        adapters: messages.Adapters = (),
        length_normalized: bool = False,
        request_id: str = "",
        timeout: float | None = GENERATE_SECONDS,
    ) -> generation.ScoreResponse:
        """How likely each of `choices` is as the continuation of `prompt`, in the order given."""
        request = messages.score_request(
            prompt, choices, adapters=adapters, length_normalized=length_normalized, request_id=request_id
        )
        return self._call(self._generation.Score, request, timeout)

    def tokenize(
        self, text: str, *, add_special_tokens: bool = False, timeout: float | None = QUICK_SECONDS
    ) -> generation.TokenizeResponse:
        """`text` as the base model's tokens."""
        request = generation.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return self._call(self._generation.Tokenize, request, timeout)

    def model_info(self, *, timeout: float | None = QUICK_SECONDS) -> generation.GetModelInfoResponse:
        """The base model's identity and limits, and the server's capacity."""
        request = generation.GetModelInfoRequest()
        return self._call(self._generation.GetModelInfo, request, timeout)
