"""The JSON documents that edgeseg writes, read back and checked once, at the edge.

Their published schemas (JSON Schema, draft 2020-12) lie in schemas/, one file a version. Within a version keys are only
ever added: what a schema requires was there from its first day, and keys that it does not name are let through.
"""

from edgeseg.documents.check import fault, schema_of
from edgeseg.documents.read import VERSIONS, checked, is_bundle, read_documents

__all__ = ["VERSIONS", "checked", "fault", "is_bundle", "read_documents", "schema_of"]
