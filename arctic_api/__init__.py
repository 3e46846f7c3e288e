"""The custom resources `ArcticTraining` and `ArcticInference` as types, and what the operator and its workers agree on.

Nothing here but pydantic: no client, no clock, no files. CRDs, references and checks are all derived from these types.
"""

GROUP = "arctic.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
