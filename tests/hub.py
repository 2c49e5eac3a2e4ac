"""A small Hugging Face hub on this machine: what loading a model or dataset asks, and failures.

    with Hub(models={"someone/tiny": {"main": folder, "v1": older}},
             datasets={"someone/messages": {"main": folder}}) as hub:
        subprocess.run([...], env=hub.environment(new_folder))

Repositories whose names (after the owner) are keys of REFUSALS, or SILENT or CUT, fail in that way.
The gated ones and CUT need folders.
"""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

Repositories = dict[str, dict[str, str | Path]]  # {"someone/tiny": {"main": folder, "v1": older}}

# The status and the X-Error-Code of each, which the client library turns into its exceptions. To a
# visitor without a login the real hub answers 401 for repositories that are private or do not
# exist, alike and without a code: over https, but not over http, the library then assumes
# RepoNotFound. The code given here makes it raise the same.
REFUSALS = {
    "gated": (403, "GatedRepo", "Access to this repository is restricted and you are not in the "
                                "authorized list."),
    "gated-login": (401, "GatedRepo", "Access to this repository is restricted. You must be "
                                      "authenticated to access it. Please log in."),
    "private": (401, "RepoNotFound", "Invalid username or password."),
    "expired": (401, None, "Invalid credentials in Authorization header"),  # or a wrong token
    "down": (503, None, "Service Unavailable"),
    "busy": (429, None, "Too Many Requests"),
}
SILENT, CUT = "silent", "cut"
CUT_OFF = (".safetensors", ".csv")  # what CUT sends half of: its small files arrive


def commit(folder: str | Path) -> str:
    """A made-up commit id, the same for the same folder; clients use it instead of a revision."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves folders, as a context manager; `requests` keeps method and path of what was asked."""

    def __init__(self, models: Repositories | None = None, datasets: Repositories | None = None):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = {"models": models or {}, "datasets": datasets or {}}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[str] = []
        self.closing = threading.Event()

    def environment(self, home: str | Path, **more: str) -> dict[str, str]:
        """Variables for a process that knows this hub alone, caches in `home`, and has no login."""
        inherited = {name: value for name, value in os.environ.items()
                     if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        return inherited | {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "OMP_NUM_THREADS": "1"} | more

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()  # lets go of those who wait for SILENT
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that gave up waiting is what tests are about, not an error of this server."""


class Answer(BaseHTTPRequestHandler):
    """One request.

    Paths: /api/KIND/ID[/WHAT/REVISION[/FILE]] for facts, /[datasets/]ID/resolve/REVISION/FILE for
    files.
    """

    server: Hub

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in self.server.repositories else "models"
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        what, revision = parts[2:4] + ["info", "main"][len(parts[2:4]):]
        if name.endswith(f"/{SILENT}"):
            self.server.closing.wait()
            return
        refusal = REFUSALS.get(name.split("/")[-1])
        anybody = api or file == "README.md"  # may see these of what is behind a gate
        if refusal and not (refusal[1] == "GatedRepo" and anybody):
            return self.refuse(*refusal)
        revisions = self.server.repositories[kind].get(name)
        if revisions is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        folder = next((Path(folder) for key, folder in revisions.items()
                       if revision in (key, commit(folder))), None)
        if folder is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not api:
            cut = name.endswith(f"/{CUT}") and file.endswith(CUT_OFF)
            return self.send_file(folder, file, cut)
        listing = [{"type": "file", "path": str(path.relative_to(folder)),
                    "size": path.stat().st_size, "oid": commit(path)}
                   for path in sorted(folder.rglob("*")) if path.is_file()]
        if what == "tree":  # of one folder, FILE; there are no subfolders here
            found = [entry for entry in listing if entry["path"].startswith(file)]
            if file and not found:
                return self.refuse(404, "EntryNotFound", f"{file} does not exist", folder)
            return self.send(200, found)
        if what == "paths-info":
            paths = parse_qs(body).get("paths", [])
            return self.send(200, [entry for entry in listing if entry["path"] in paths])
        siblings = [{"rfilename": entry["path"]} for entry in listing]
        self.send(200, {"id": name, "sha": commit(folder), "tags": [], "siblings": siblings})

    do_HEAD = do_POST = do_GET

    def send(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON, or with bytes as they are; after a HEAD request without them."""
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str | None, message: str,
               folder: Path | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        headers |= {"X-Repo-Commit": commit(folder)} if folder else {}
        self.send(status, {"error": message}, headers)

    def send_file(self, folder: Path, file: str, cut: bool) -> None:
        """A file, with the headers that clients cache it by; `cut` promises twice what comes."""
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound", f"{file} does not exist", folder)
        content = (folder / file).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                   "X-Repo-Commit": commit(folder), "Content-Length": str(len(content))}
        self.send(200, content[:len(content) // 2] if cut else content, headers)

    def log_message(self, *_) -> None:
        """Not on the tests' output."""
