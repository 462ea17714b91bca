"""RegistryService: message ⇄ core type. The registry blocks on the disk, so every call of it runs in the executor."""

from hotshoe.server.services.blobs import BlobService
from hotshoe.server.services.copies import CopyService
from hotshoe.server.services.documents import DocumentService
from hotshoe.server.services.keeping import KeepingService
from hotshoe.server.services.publishing import PublishingService
from hotshoe.server.services.recipes import RecipeService
from hotshoe.server.services.tags import TagService


class RegistryService(
    BlobService, PublishingService, DocumentService, RecipeService, CopyService, TagService, KeepingService
):
    """The registry for those who are not on its disk. Its arguments are RegistryPart's."""
