"""The RPCs about tags, and where they pointed."""

import logging

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.reader import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.registry_messages import move_message
from hotshoe.server.services.registry_part import RegistryPart
from hotshoe.server.services.rpc import Context, call


class TagService(RegistryPart):
    """A part of `RegistryService`."""

    async def UpdateTag(
        self, request: registry_pb2.UpdateTagRequest, context: Context
    ) -> registry_pb2.UpdateTagResponse:
        record = await call(
            self._registry.update_tag, request.name, request.tag, request.digest, request.expected_digest
        )
        log_event(logging.INFO, "update_tag", name=request.name, tag=request.tag, digest=record.digest)
        return registry_pb2.UpdateTagResponse(adapter=adapter_message(record))

    async def DeleteTag(
        self, request: registry_pb2.DeleteTagRequest, context: Context
    ) -> registry_pb2.DeleteTagResponse:
        await call(self._registry.delete_tag, request.name, request.tag)
        log_event(logging.INFO, "delete_tag", name=request.name, tag=request.tag)
        return registry_pb2.DeleteTagResponse()

    async def RollBackTag(
        self, request: registry_pb2.RollBackTagRequest, context: Context
    ) -> registry_pb2.RollBackTagResponse:
        record, previous = await call(self._registry.roll_back_tag, request.name, request.tag)
        log_event(logging.INFO, "roll_back_tag", name=request.name, tag=request.tag, digest=record.digest)
        return registry_pb2.RollBackTagResponse(adapter=adapter_message(record), previous_digest=previous or "")

    async def ListTagMoves(
        self, request: registry_pb2.ListTagMovesRequest, context: Context
    ) -> registry_pb2.ListTagMovesResponse:
        if request.limit < 0:
            raise InvalidRequest("limit", f"must be 0 or more, not {request.limit}")
        limit = min(request.limit or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        history = await call(self._registry.tag_history, request.name, request.tag, limit=limit)
        return registry_pb2.ListTagMovesResponse(moves=map(move_message, history))
