"""A small Hugging Face Hub: what `huggingface_hub` and timm ask of one over HTTP, and failures on demand.

Repositories hold commits, as on the Hub: a file is a git blob, or a Git LFS pointer to an object that is named by its
sha256 and is served from another host (`localhost` instead of `127.0.0.1`), where a token would be a leak.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 10_000  # bytes; the Hub goes by the file's name and by what it looks like


class Blob(NamedTuple):
    """A file of a commit: its content, or for an LFS file the pointer to it."""

    content: bytes
    sha256: str | None = None
    size: int = 0

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def lfs_pointer(sha256: str, size: int) -> Blob:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(text.encode(), sha256, size)


class Commit(NamedTuple):
    sha: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository.

    Attributes:
        owner: namespace; its tokens may read and write.
        gated: only `granted` tokens may read its files.
        refs: branch, or "refs/pr/N", -> commit.
    """

    owner: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, title: str, files: Mapping[str, Blob]) -> Commit:
        parent = self.refs.get(ref)
        names = [f"{name} {blob.oid}" for name, blob in sorted(files.items())]
        sha = hashlib.sha1("\n".join((str(parent), str(len(self.commits)), title, *names)).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, dict(files))
        self.refs[ref] = sha
        return self.commits[sha]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" matches.

    Attributes:
        times: how many of them.
        status: answered instead, with `message`.
        cut: connection closed after so many bytes of the body, of the upload if there is one, else of the answer.
        act: called before the request is handled as usual.
    """

    match: str
    times: int = 1
    status: int = 0
    message: str = "on demand"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    act: Callable[[], object] | None = None


class HubServer(ThreadingHTTPServer):
    """The state of the Hub.

    Attributes:
        tokens: token -> namespaces in which it may write and read what is private.
        repos: by "owner/name".
        objects: LFS objects by sha256.
        faults: looked through in order; each is used up after its `times`.
        requests: (method, path) of each request so far.
        authorizations: Authorization headers that were sent.
        altered_headers: take the place of those of all answers.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens: dict[str, set[str]] = {}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str] = set()
        self.altered_headers: dict[str, str] = {}
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}/cdn"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The content of all files."""
        commit = self.repos[repo].find(revision)
        assert commit is not None, (repo, revision)
        return {n: self.objects[b.sha256] if b.sha256 else b.content for n, b in commit.files.items()}

    def put(self, repo: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Commit files, as anybody could who may write there; returns the commit's sha."""
        with self.lock:
            found = self.repos.setdefault(repo, Repo(repo.split("/")[0]))
            before = found.find(revision)
            blobs = {name: self._blob(content) for name, content in files.items()}
            return found.commit(revision, "put", (before.files if before else {}) | blobs).sha

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return None

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path in self.requests)

    def _blob(self, content: bytes) -> Blob:
        if len(content) < LFS_FROM:
            return Blob(content, size=len(content))
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return lfs_pointer(sha256, len(content))


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        self.status, self.message, self.code, self.headers = status, message, code, headers


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"/api/models/{_REPO}(?:/revision/{_REVISION})?", "info"),
    ("GET", rf"/api/models/{_REPO}/refs", "refs"),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"/api/models/{_REPO}/paths-info/{_REVISION}", "paths_info"),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", "commit"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", "lfs_put"),
    ("POST", r"/lfs/verify", "lfs_verify"),
    ("GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
    ("GET", r"/cdn/(?P<sha256>[0-9a-f]{64})", "cdn"),
]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # the client went away
            super().handle_one_request()

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        server, url = self.server, urlsplit(self.path)
        server.requests.append((self.command, unquote(self.path)))
        if authorization := self.headers.get("Authorization"):
            server.authorizations.add(authorization)
        fault = server.fault(f"{self.command} {unquote(self.path)}")
        self._cut = fault.cut if fault else None
        try:
            self.body = self._receive()
        except ConnectionAbortedError:
            return
        try:
            if fault and fault.act:
                fault.act()
            if fault and fault.status:
                raise _Refused(fault.status, fault.message, **fault.headers)
            self.query = parse_qs(url.query)
            name, arguments = self._route(url.path)
            with server.lock:
                answer = getattr(self, f"_{name}")(**arguments)
            self._send(*answer)
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message, **refused.headers}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def _receive(self) -> bytes:
        """The request's body; an upload that is to be cut is read that far."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        if length and self._cut is not None:
            self.rfile.read(min(self._cut, length))
            self.close_connection = True
            raise ConnectionAbortedError
        return self.rfile.read(length)

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {}), **self.server.altered_headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: self._cut])
        if self._cut is not None:
            self.close_connection = True

    def _route(self, path: str) -> tuple[str, dict[str, Any]]:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in _ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                return name, {k: v and unquote(v) for k, v in match.groupdict().items()}
        raise _Refused(404, f"no such page: {self.command} {path}")

    # -- who may do what -----------------------------------------------------------------------------------------------

    def _token(self) -> str | None:
        """The token that was sent, if it is good."""
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent.startswith("Basic "):  # for a mirror that stands before the Hub
            return None
        if sent and sent not in self.server.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return sent or None

    def _namespaces(self) -> set[str]:
        token = self._token()
        return self.server.tokens[token] if token else set()

    def _repo(self, name: str, write: bool = False, content: bool = False) -> Repo:
        token, repo = self._token(), self.server.repos.get(name)
        mine = repo is not None and repo.owner in self._namespaces()
        if repo is None or (repo.private and not mine):
            raise _Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and not mine and token not in repo.granted:
            raise _Refused(403 if token else 401, f"Access to model {name} is restricted.", "GatedRepo")
        if write and not mine:
            status = 403 if token else 401
            raise _Refused(status, "Forbidden: you must use a write token" if token else "Invalid username or password")
        return repo

    def _found(self, repo: Repo, revision: str | None) -> Commit:
        if found := repo.find(revision or "main"):
            return found
        raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _whoami(self) -> Any:
        if self._token() is None:
            raise _Refused(401, "Invalid username or password.")
        names = sorted(self._namespaces())
        return _json({"type": "user", "name": names[0], "orgs": [{"name": n, "type": "org"} for n in names[1:]]})

    def _validate_yaml(self) -> Any:
        import yaml

        _, _, rest = json.loads(self.body)["content"].partition("---\n")
        try:
            assert isinstance(yaml.safe_load(rest.split("\n---\n")[0]), dict)
        except (yaml.YAMLError, AssertionError) as error:
            return 400, json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode()
        return _json({"errors": [], "warnings": []})

    def _create(self) -> Any:
        asked = json.loads(self.body)
        if self._token() is None:
            raise _Refused(401, "Invalid username or password.")
        owner = asked.get("organization") or sorted(self._namespaces())[0]
        name = f"{owner}/{asked['name']}"
        url = f"{self.server.url}/{name}"
        if owner not in self._namespaces():
            raise _Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if name in self.server.repos:
            return 409, json.dumps({"error": "You already created this model repo", "url": url}).encode()
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repos[name] = repo = Repo(owner, private=private)
        repo.commit("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", size=25)})
        return _json({"url": url, "name": name, "id": name})

    def _info(self, repo: str, revision: str | None) -> Any:
        found = self._repo(repo)
        commit = self._found(found, revision)
        siblings = [{"rfilename": name} for name in commit.files]
        info = {"id": repo, "modelId": repo, "sha": commit.sha, "private": found.private, "gated": found.gated}
        return _json({**info, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _refs(self, repo: str) -> Any:
        refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in self._repo(repo).refs.items()]
        pulls = [{**r, "ref": r["name"]} for r in refs if r["name"].startswith("refs/pr/")]
        heads = [r for r in refs if not r["name"].startswith("refs/pr/")]
        answer = {"branches": heads, "tags": [], "converts": []}
        return _json(answer | ({"pullRequests": pulls} if "include_prs" in self.query else {}))

    def _tree(self, repo: str, revision: str, path: str | None) -> Any:
        files = self._found(self._repo(repo), revision).files
        return _json([_entry(n, blob) for n, blob in files.items() if n.startswith(f"{path}/" if path else "")])

    def _paths_info(self, repo: str, revision: str) -> Any:
        files = self._found(self._repo(repo), revision).files
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form")
        paths = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
        return _json([_entry(n, files[n]) for n in paths if n in files])

    def _branch(self, repo: str, branch: str) -> Any:
        found = self._repo(repo, write=True)
        if branch in found.refs:
            raise _Refused(409, f"Reference refs/heads/{branch} already exists")
        found.refs[branch] = self._found(found, json.loads(self.body or b"{}").get("startingPoint")).sha
        return _json({})

    def _preupload(self, repo: str, revision: str) -> Any:
        found = self._repo(repo, write="create_pr" not in self.query)
        files = self._found(found, revision).files
        answer = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["size"] >= LFS_FROM else "regular"
            oid = files[file["path"]].etag if file["path"] in files else None
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": answer})

    def _lfs_batch(self, repo: str) -> Any:
        asked = json.loads(self.body)
        self._repo(repo, write="ref" in asked)  # without one it is for a pull request
        objects = []
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                upload = {"href": f"{self.server.url.replace('127.0.0.1', 'localhost')}/lfs/{wanted['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.server.url}/lfs/verify"}}
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, sha256: str) -> Any:
        self._refuse_token()
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise _Refused(400, "these are other bytes")
        self.server.objects[sha256] = self.body
        return 200, b""

    def _lfs_verify(self) -> Any:
        asked = json.loads(self.body)
        if len(self.server.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(422, "the object is not there")
        return _json({})

    def _commit(self, repo: str, revision: str) -> Any:
        pull = "create_pr" in self.query
        found = self._repo(repo, write=not pull)
        base = self._found(found, revision)
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit", base.sha) != base.sha:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    content = base64.b64decode(value["content"])
                    files[value["path"]] = Blob(content, size=len(content))
                case "lfsFile":
                    if value["oid"] not in self.server.objects:
                        raise _Refused(400, "the object is not there")
                    files[value["path"]] = lfs_pointer(value["oid"], value["size"])
                case "deletedFile":
                    del files[value["path"]]
        ref = revision
        if pull:
            ref = f"refs/pr/{1 + sum(r.startswith('refs/pr/') for r in found.refs)}"
            found.refs[ref] = base.sha
        commit = found.commit(ref, header["value"]["summary"], files)
        url = f"{self.server.url}/{repo}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}"}
        if pull:
            answer["pullRequestUrl"] = f"{url}/discussions/{ref.rpartition('/')[2]}"
        return _json(answer)

    def _resolve(self, repo: str, revision: str, path: str) -> Any:
        commit = self._found(self._repo(repo, content=True), revision)
        at = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise _Refused(404, "Entry not found", "EntryNotFound", **at)
        blob = commit.files[path]
        if blob.sha256 is None:
            return self._ranged(blob.content, at | {"ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        return 302, b"", at | linked | {"ETag": f'"{blob.oid}"', "Location": f"{self.server.cdn}/{blob.sha256}"}

    def _cdn(self, sha256: str) -> Any:
        self._refuse_token()
        return self._ranged(self.server.objects[sha256], {"ETag": f'"{sha256}"'})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> Any:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 200, content, headers
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if start >= len(content):
            raise _Refused(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
        part = content[start : end + 1]
        return 206, part, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}

    def _refuse_token(self) -> None:
        if self.headers.get("Authorization"):
            raise _Refused(400, "a token was sent to another host than the Hub")


def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _entry(name: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": blob.size, "oid": blob.oid}
    if blob.sha256:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.content)}
    return entry


@contextmanager
def hub_serving() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def set_constants(monkeypatch: Any, **values: object) -> None:
    """What `huggingface_hub` read from HF_ENDPOINT and other variables when it was imported, wherever it put it."""
    for name, value in values.items():
        for module in [m for key, m in sys.modules.items() if key.split(".")[0] == "huggingface_hub"]:
            if name in vars(module):
                monkeypatch.setattr(module, name, value)
