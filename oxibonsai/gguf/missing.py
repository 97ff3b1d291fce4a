"""Names that are no file's but say what they are: URLs, and models of a hub; and pieces of a file.

The hubs' own addresses name pages where a file is shown; what is advised fetches the file.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from typing import Final
from urllib.parse import unquote

from oxibonsai.gguf.errors import GGUFError

__all__ = ["GGUFNotFoundError", "explain_missing", "explain_piece"]

# One slash too, which is what pathlib leaves of two.
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?P<rest>.*)", re.DOTALL)
# Names that programs which load models give to a hub; no slash has to follow.
_SHORT: Final = re.compile(
    r"(?P<scheme>hf|huggingface|modelscope|ollama):/{0,2}(?P<rest>.*)", re.DOTALL | re.IGNORECASE
)
_HOST: Final = re.compile(
    r"(?:www\.)?(?P<host>hf\.co|huggingface\.co|hf-mirror\.com|github\.com|gitlab\.com|modelscope\.cn|"
    r"modelscope\.ai|ollama\.com)(?::\d+)?/+(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_KINDS: Final = {"models": "", "datasets": " --repo-type dataset", "spaces": " --repo-type space"}
_NAME: Final = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY: Final = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?::[\w.-]+)?(?P<rest>/.*)?", re.DOTALL)
_BARE: Final = re.compile(
    rf"(?P<id>{_NAME}/{_NAME})(?::[\w.-]+|/(?P<file>\S+\.gguf)|/)?", re.IGNORECASE
)
_FETCH: Final = {
    **dict.fromkeys(("http", "https", "ftp", "ftps", "sftp"), "curl -L -O {}"),
    "s3": "aws s3 cp {} .",
    "gs": "gcloud storage cp {} .",
}

# Files that were cut by their bytes: what is before the number or the letters of a piece, those,
# and what says how many there are. Two letters alone are those of split(1); others, as .gz, are
# not.
_PIECE: Final = re.compile(
    r"(?P<whole>.*\.gguf)(?P<sep>[.-](?:part|split)[.-]?|\.(?=\d{2}|a[a-z]$))"
    r"(?P<which>\d{1,4}|[a-z]{1,2})(?P<of>-?of-?(?P<count>\d{1,3}))?",
    re.DOTALL | re.IGNORECASE,
)


class GGUFNotFoundError(GGUFError, FileNotFoundError):
    """A name that is no file's, such as that of a repository: the message says what it is.

    Parameters
    ----------
    message : str
        The text.
    path : str
        The name, as the attribute `filename`.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.message = message
        self.errno = errno.ENOENT
        self.filename = path

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[GGUFNotFoundError], tuple[str, str]]:
        return type(self), (self.message, str(self.filename))


def explain_missing(path: str) -> GGUFNotFoundError | None:
    """Return the error for a name that is no file's but says what it is: a URL or a repository.

    Parameters
    ----------
    path : str
        A path at which there is nothing.

    Returns
    -------
    GGUFNotFoundError or None
        None for a path that is just missing.
    """
    text = _explain(path)
    return None if text is None else GGUFNotFoundError(text, path)


def _explain(path: str) -> str | None:
    if path.startswith("~"):
        return f"there is no file {path}; ~ is not expanded here: os.path.expanduser does that"
    url = _URL.fullmatch(path) or _SHORT.fullmatch(path)
    if url:
        return _of_url(url["scheme"].lower(), url["rest"], path)
    host = _HOST.fullmatch(path)
    if host:
        way = _of_host(host["host"].lower(), host["rest"], f"https://{path}")
        return f"there is no file {path}; if it is an address without https://, {way}"
    pieces = _pieces_beside(path)
    if pieces:
        return f"there is no file {path}, but pieces of it are: join the pieces: {pieces}"
    found = _BARE.fullmatch(path)
    if found is None:
        return None
    file, owner = found["file"], found["id"].partition("/")[0]
    # A path of this form is more likely a path, unless its folder is not there either.
    is_path = path.lower().endswith(".gguf") and (file is None or "gguf" not in found["id"].lower())
    if is_path or os.path.exists(owner):
        return None
    return (
        f"there is no file {path}; if it is the name of a repository of Hugging Face, download a "
        f"file of it first: {_hugging_face(found['id'], file)}"
    )


def _of_url(scheme: str, rest: str, path: str) -> str:
    if scheme == "file":
        local = unquote(rest.removeprefix("localhost/"))
        local = local if local.startswith("/") else f"/{local}"
        return f"{path} is a URL; a path is needed: drop file:// and give {local}"
    full = f"{scheme}://{rest}"
    if scheme in ("hf", "huggingface", "modelscope", "ollama"):
        name = {"hf": "hf.co", "modelscope": "modelscope.cn", "ollama": "ollama.com"}
        way = _of_host(name.get(scheme, "hf.co"), rest, full)
        what = f"{full} is a URL" if ":/" in path else f"{path} is the name of a model of a hub"
        return f"{what}; a file on this machine is needed: {way}"
    way = ""
    host = _HOST.fullmatch(rest) if scheme in ("http", "https") else None
    if host:
        way = _of_host(host["host"].lower(), host["rest"], full)
    elif scheme in _FETCH:
        way = f"download it first, such as with {_FETCH[scheme].format(shlex.quote(full))}"
    else:
        way = "download it first"
    return f"{full} is a URL; a file on this machine is needed: {way}"


def _of_host(host: str, rest: str, full: str) -> str:
    """Return what fetches the model of an address of a known host."""
    plain = unquote(re.split("[?#]", rest, maxsplit=1)[0]).strip("/")
    if host in ("hf.co", "huggingface.co", "hf-mirror.com"):
        return _of_hugging_face(plain, full)
    if host.startswith("modelscope"):
        return _of_modelscope(plain)
    if host == "ollama.com":
        name = plain.removeprefix("library/") or "NAME"
        return (
            "Ollama keeps its own copy, whose path is the line FROM of: "
            f"ollama show --modelfile {shlex.quote(name)}"
        )
    # A page that shows a file, and the file: github.com/O/N/blob/..., gitlab.com/O/N/-/blob/...
    raw = re.sub(r"^([^?#]*?/)blob/", r"\1raw/", full, count=1)
    if re.search(r"/(raw|releases/download|resolve)/", raw):
        return f"download it first, such as with {_FETCH['https'].format(shlex.quote(raw))}"
    return (
        "it is a page, not a file: download a file that it has a link to first, such as with "
        "curl -L -O LINK"
    )


def _of_hugging_face(plain: str, full: str) -> str:
    first, _, after = plain.partition("/")
    kind = _KINDS.get(first.lower(), "")
    found = _REPOSITORY.fullmatch(after if first.lower() in _KINDS else plain)
    if found is None:
        return f"download a file first, such as with {_hugging_face('OWNER/NAME', 'FILE.gguf')}"
    verb, _, where = (found["rest"] or "").strip("/").partition("/")
    if verb == "resolve":
        return f"download it first, such as with {_FETCH['https'].format(shlex.quote(full))}"
    revision = None
    if verb in ("blob", "raw", "tree"):
        revision, _, where = where.partition("/")
    elif verb.lower().endswith(".gguf") or where.lower().endswith(".gguf"):
        where = (found["rest"] or "").strip("/")  # hf://OWNER/NAME/FILE.gguf
    else:
        # A page may show what is in a file: ?show_file_info=FILE.gguf
        shown = re.search(r"[?&]show_file_info=([^&#]+)", full)
        where = unquote(shown[1]) if shown else ""
    way = _hugging_face(found["id"], where or None, revision, kind)
    return f"download it first, such as with {way}"


def _hugging_face(
    repository: str, file: str | None, revision: str | None = None, kind: str = ""
) -> str:
    wanted = _wanted(file)
    version = "" if revision in (None, "", "main") else f" --revision {shlex.quote(revision)}"
    return f"hf download {repository} {wanted}{kind}{version} --local-dir ."


def _of_modelscope(plain: str) -> str:
    found = _REPOSITORY.fullmatch(plain.removeprefix("models/"))
    if found is None:
        repository, file = "OWNER/NAME", None
    else:
        at = re.search(r"/(?:file/view|resolve)/[^/]+/(.+)", found["rest"] or "")
        repository, file = found["id"], at[1] if at else None
    return (
        "download it first, such as with "
        f"modelscope download --model {repository} {_wanted(file)} --local_dir ."
    )


def _wanted(file: str | None) -> str:
    """Return the arguments for a file, or for all GGUF files of a folder or a repository."""
    if file and file.lower().endswith(".gguf"):
        return shlex.quote(file)
    return f"--include {shlex.quote(f'{file}/*.gguf')}" if file else '--include "*.gguf"'


def explain_piece(path: str) -> str | None:
    """Return what to do with a file that is a piece of one that was cut by its bytes.

    Parameters
    ----------
    path : str
        Its name.

    Returns
    -------
    str or None
        The end of a sentence; None where the name is not that of a piece.
    """
    folder, name = os.path.split(path)
    found = _PIECE.fullmatch(name)
    if found is None:
        return None
    return f"by its name it is a piece of a file: join the pieces: {_joined(folder, found)}"


def _pieces_beside(path: str) -> str | None:
    """Return what joins the pieces of a missing file; None where there are none."""
    folder, name = os.path.split(path)
    if not name.lower().endswith(".gguf"):
        return None
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError:
        return None
    for other in names:
        found = _PIECE.fullmatch(other)
        if found and found["whole"] == name:
            return _joined(folder, found)
    return None


def _joined(folder: str, found: re.Match[str]) -> str:
    whole = os.path.join(folder, found["whole"])
    start = f"{whole}{found['sep']}"
    count = int(found["count"] or 0)
    if 2 <= count <= 9:
        of, width = found["of"], len(found["which"])
        pieces = " ".join(shlex.quote(f"{start}{i:0{width}d}{of}") for i in range(1, count + 1))
    else:
        # In the order of the names, which is right where the numbers have as many digits.
        pieces = f"{shlex.quote(start)}*"
    return f"cat {pieces} > {shlex.quote(whole)}"
