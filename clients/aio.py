"""The asyncio client, twin of `client.py`: requests, errors and retries are shared, the I/O is not."""

from hotshoe.clients.methods.aio_adapters import AsyncAdapterMethods
from hotshoe.clients.methods.aio_copies import AsyncCopyMethods
from hotshoe.clients.methods.aio_documents import AsyncDocumentMethods
from hotshoe.clients.methods.aio_generation import AsyncGenerationMethods
from hotshoe.clients.methods.aio_keeping import AsyncKeepingMethods
from hotshoe.clients.methods.aio_recipes import AsyncRecipeMethods
from hotshoe.clients.methods.aio_residency import AsyncResidencyMethods
from hotshoe.clients.methods.aio_tags import AsyncTagMethods


class AsyncClient(
    AsyncGenerationMethods,
    AsyncDocumentMethods,
    AsyncAdapterMethods,
    AsyncCopyMethods,
    AsyncRecipeMethods,
    AsyncTagMethods,
    AsyncKeepingMethods,
    AsyncResidencyMethods,
):
    """An asyncio client of one hotshoe server. Make it where an event loop runs.

    Calls return the wire's messages (hotshoe.protos.v1) and raise the classes of hotshoe.clients.errors. Each has a
    `timeout` in seconds that covers all its attempts.

        async with AsyncClient("127.0.0.1:50051") as client:
            await client.publish_directory("pirate/", "pirate")
            async with client.stream("Who are you?", adapters=["pirate"], max_new_tokens=64) as answer:
                async for delta in answer:
                    print(delta.text_delta, end="")
            print(answer.final.usage)
    """
