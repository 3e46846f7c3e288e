"""URIs `file:///...` and their paths: manifests, operator, workers and commands all read them by the rule here."""

import os
from urllib.parse import unquote

_SCHEME = "file://"


def path_of(uri: str) -> str:
    """Return the path that a URI `file:///...` names; anything else, one with a host among it, as it stands.

    All behind `file://` is the path: `?` of a glob and `#` in a name do not end it, as they would that of a web page.
    What `Path.as_uri` has quoted, such as `%20`, is read as what it stands for.
    """
    return unquote(uri.removeprefix(_SCHEME)) if uri.startswith(f"{_SCHEME}/") else uri


def uri_of(path: str) -> str:
    """Return the URI that `path_of` reads as `path`, from the working folder if that is relative.

    All but `%` stays as it is: people read it, and whoever takes the path for all behind `file://` is right so far.
    """
    return _SCHEME + os.path.abspath(path).replace("%", "%25")
