"""Tags, and where they pointed."""

from collections.abc import Sequence

from hotshoe.clients.channels import QUICK_SECONDS
from hotshoe.clients.connection import Connection
from hotshoe.protos.v1 import registry_pb2 as registry


class TagMethods(Connection):
    """Part of Client."""

    def update_tag(
        self, name: str, tag: str, digest: str, *, expected_digest: str, timeout: float | None = QUICK_SECONDS
    ) -> registry.Adapter:
        """Moves a tag to `digest` if it points at `expected_digest` now; "" means that it must not exist.

        Raises Aborted when it points elsewhere. Not tried again when the answer was lost: read the tag then.
        """
        request = registry.UpdateTagRequest(name=name, tag=tag, digest=digest, expected_digest=expected_digest)
        response = self._call(self._registry.UpdateTag, request, timeout, idempotent=False)
        return response.adapter

    def delete_tag(self, name: str, tag: str, *, timeout: float | None = QUICK_SECONDS) -> None:
        """Removes a tag; the content stays until it is collected. Not tried again when the answer was lost."""
        request = registry.DeleteTagRequest(name=name, tag=tag)
        self._call(self._registry.DeleteTag, request, timeout, idempotent=False)

    def roll_back_tag(
        self, name: str, tag: str, *, timeout: float | None = QUICK_SECONDS
    ) -> registry.RollBackTagResponse:
        """Moves a tag back to where it pointed before its latest move, or its removal; again undoes that.

        Not tried again when the answer was lost: read the tag then.
        """
        request = registry.RollBackTagRequest(name=name, tag=tag)
        return self._call(self._registry.RollBackTag, request, timeout, idempotent=False)

    def list_tag_moves(
        self, name: str, tag: str = "", *, limit: int = 0, timeout: float | None = QUICK_SECONDS
    ) -> Sequence[registry.TagMove]:
        """What became of a name's tags, or of one, the latest first; at most `limit`, or 100."""
        request = registry.ListTagMovesRequest(name=name, tag=tag, limit=limit)
        response = self._call(self._registry.ListTagMoves, request, timeout)
        return response.moves
