"""A Hugging Face hub on 127.0.0.1: the endpoints that its client uses to push and to fetch models.

Repositories are made, committed to (files in base64, as the client sends small ones), listed and
fetched by branch, commit, or the tag "first" of their first commit with files. Nothing else is
there: another path is answered 404.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """``endpoint``: its address. ``repositories``: name to commits, each a hash and its files."""

    def __init__(self):
        self.repositories = {}
        self.requests = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.requests.append((self.command, self.path))
                status, headers, content = hub.answer(self.command, self.path, self.body())
                if isinstance(content, (dict, list)):
                    content = json.dumps(content).encode()
                    headers = {**headers, "Content-Type": "application/json"}
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_POST = do_GET

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, verb, path, body):
        path = path.partition("?")[0]
        for pattern, method in (
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", self.validate),
            (r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)", self.preupload),
            (r"POST /api/models/([^/]+/[^/]+)/commit/(.+)", self.commit),
            (r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            (r"GET /api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.info),
            (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.file),
        ):
            if match := re.fullmatch(pattern, f"{verb} {path}"):
                return method(body, *match.groups())
        return 404, {}, {"error": "no such endpoint"}

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if name in self.repositories:
            return 409, {}, {"url": f"{self.endpoint}/{name}"}
        self.repositories[name] = [("0" * 40, {})]
        return 200, {}, {"url": f"{self.endpoint}/{name}"}

    def validate(self, body):
        return 200, {}, {"errors": [], "warnings": []}

    def preupload(self, body, name, revision):
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        return 200, {}, {"files": files}

    def commit(self, body, name, revision):
        _, files = self.repositories[name][-1]
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[name].append((commit, files))
        return (
            200,
            {},
            {"commitOid": commit, "commitUrl": f"{self.endpoint}/{name}/commit/{commit}"},
        )

    def at(self, name, revision):
        """Commit and files; None: there is no such repository or revision."""
        commits = self.repositories.get(name, [])
        if revision in (None, "main"):
            return commits[-1] if commits else None
        if revision == "first":  # a tag
            return commits[1] if len(commits) > 1 else None
        return next((commit for commit in commits if commit[0] == revision), None)

    def missing(self, name):
        code = "RevisionNotFound" if name in self.repositories else "RepoNotFound"
        return 404, {"X-Error-Code": code}, {"error": code}

    def info(self, body, name, revision):
        if (found := self.at(name, revision)) is None:
            return self.missing(name)
        commit, files = found
        siblings = [{"rfilename": path} for path in files]
        return 200, {}, {"id": name, "sha": commit, "siblings": siblings}

    def tree(self, body, name, revision):
        if (found := self.at(name, revision)) is None:
            return self.missing(name)
        listed = [
            {"type": "file", "path": path, "size": len(content), "oid": self.etag(content)}
            for path, content in found[1].items()
        ]
        return 200, {}, listed

    def file(self, body, name, revision, path):
        if (found := self.at(name, revision)) is None:
            return self.missing(name)
        commit, files = found
        if path not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "EntryNotFound"}
        headers = {"X-Repo-Commit": commit, "ETag": f'"{self.etag(files[path])}"'}
        return 200, headers, files[path]

    @staticmethod
    def etag(content):
        return hashlib.sha1(content).hexdigest()
