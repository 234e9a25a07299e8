"""The one door to the network: fetches a file whose address, size and check sum are known beforehand.

Called when the user has pressed a button, never otherwise.  Nothing is sent but the request for the file.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from DiffeoRegLib.errors import OutputError

BLOCK = 1 << 20
TIMEOUT_SECONDS = 30.0
ELSEWHERE = "Check the network connection and the proxy, or fetch the file elsewhere and use Import."
SCHEME = "https://"


class OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address only where that is encrypted, too."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request; raises OutputError for an address that is not https."""
        require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def require_https(url: str) -> None:
    """Raises OutputError for an address whose answer could be read or changed on its way."""
    if not url.lower().startswith(SCHEME):
        raise OutputError(f"Nothing is fetched from '{url}': only https addresses are used. {ELSEWHERE}")


def fetch(
    url: str, path: Path, sha256: str, size_bytes: int, told: Callable[[float], None] = lambda share: None,
    opener: urllib.request.OpenerDirector | None = None,
) -> None:  # fmt: skip
    """Write what is at an https address to a new file, if it is exactly the file that was meant.

    sha256: 64 hex digits.  size_bytes: not one byte more is taken.  told: share that has arrived, 0..1.
    opener: of connections; the system's proxy settings are used unless given.
    Raises OutputError for another address, a server that cannot be reached or redirects to one without
    encryption, a file of another size or check sum, and a place that cannot be written to; no part of the
    file stays.
    """
    require_https(url)
    opener = opener or urllib.request.build_opener(OnlyHttps)
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as stream:
            require_https(stream.geturl())
            digest = _copied(stream, path, size_bytes, told)
        if digest != sha256:
            raise OutputError(
                f"What came from '{url}' is not the file that was meant (check sum or size). {ELSEWHERE}"
            )
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        path.unlink(missing_ok=True)
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise OutputError(f"'{url}' could not be fetched: {reason}. {ELSEWHERE}") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _copied(stream: IO[bytes], path: Path, size_bytes: int, told: Callable[[float], None]) -> str:
    """SHA-256 of what was written, empty when there was more than that."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        while block := stream.read(BLOCK):
            size += len(block)
            if size > size_bytes:
                return ""
            file.write(block)
            digest.update(block)
            told(size / size_bytes)
    return digest.hexdigest()
