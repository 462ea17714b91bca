"""The blocking client. `aio.py` is its asyncio twin: requests, errors and retries are shared, the I/O is not."""

from hotshoe.clients.methods.adapters import AdapterMethods
from hotshoe.clients.methods.copies import CopyMethods
from hotshoe.clients.methods.documents import DocumentMethods
from hotshoe.clients.methods.generation import GenerationMethods
from hotshoe.clients.methods.keeping import KeepingMethods
from hotshoe.clients.methods.recipes import RecipeMethods
from hotshoe.clients.methods.residency import ResidencyMethods
from hotshoe.clients.methods.tags import TagMethods


class Client(
    GenerationMethods,
    DocumentMethods,
    AdapterMethods,
    CopyMethods,
    RecipeMethods,
    TagMethods,
    KeepingMethods,
    ResidencyMethods,
):
    """A blocking client of one hotshoe server; safe to share between threads.

    Calls return the wire's messages (hotshoe.protos.v1) and raise the classes of hotshoe.clients.errors. Each has a
    `timeout` in seconds that covers all its attempts.

        with Client("127.0.0.1:50051") as client:
            client.publish_directory("pirate/", "pirate")
            with client.stream("Who are you?", adapters=["pirate"], max_new_tokens=64) as answer:
                for delta in answer:
                    print(delta.text_delta, end="")
            print(answer.final.usage)
    """
