"""The model card that is saved and uploaded; uploads go to a server of this test, never to the network."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from flamingo_lite.models.card import model_card
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


@dataclass
class Hub:
    """What the hub's address answers, and what it was sent."""

    address: str = ""
    cards: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server on this machine that speaks the part of the hub's protocol that an upload needs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: Any, status: int = 200, **headers: str) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            if hub.cards:
                self.answer({}, ETag='"1"', X_Repo_Commit="0" * 40)
            else:
                self.answer({}, 404, X_Error_Code="EntryNotFound")

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(sent))
                self.answer({"url": f"{hub.address}/someone/model"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = [
                    {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for item in json.loads(sent)["files"]
                ]
                self.answer({"files": files})
            else:
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitOid": "1" * 40, "commitUrl": f"{hub.address}/someone/model/commit/1"})

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    addresses = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", addresses)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield hub
    server.shutdown()
    server.server_close()


def test_a_saved_card_is_read_by_the_hubs_own_reader(joined: Joined, tmp_path: Path) -> None:
    model, _ = joined
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("flamingo_lite", "image-text-to-text")
    assert card.data.license == "unknown"
    assert card.data.base_model is None  # both parts came from directories of this machine
    trained = sum(p.numel() for n, p in model.named_parameters() if n.startswith("connector."))
    assert f"| connector | {trained:,} | {trained:,} |" in card.text
    frozen = sum(p.numel() for n, p in model.named_parameters() if n.startswith("vision."))
    assert f"| vision encoder | {frozen:,} | 0 |" in card.text
    assert "fl.load(" in card.text and str(tmp_path.parent.parent) not in card.content


def test_base_models_are_named_where_they_can_be_looked_up(model: VisionLanguageModel) -> None:
    model.config.sources = {
        "vision": {"name": "ViT-L-14", "pretrained": "openai"},
        "language": {"name": 'someone/a: "model"', "revision": "abc"},
    }
    card = ModelCard(model_card(model))
    assert card.data.base_model == ['someone/a: "model"']
    assert "`ViT-L-14` (pretrained openai)" in card.text and "revision abc" in card.text


def test_a_card_that_is_there_is_kept(joined: Joined, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    joined[0].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_upload_holds_the_saved_directory_and_its_card(hub: Hub, joined: Joined, tmp_path: Path) -> None:
    model, processor = joined
    where = model.push_to_hub("someone/model", processor=processor, private=True)
    assert where == f"{hub.address}/someone/model/commit/1"
    assert "private" in json.dumps(hub.created[0])  # as a flag or as a visibility, by version
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert hub.files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert hub.files["README.md"].startswith(b"---\nlibrary_name:")


def test_an_upload_leaves_the_card_that_the_repository_has(hub: Hub, joined: Joined) -> None:
    hub.cards = True
    joined[0].push_to_hub("someone/model")
    assert "config.json" in hub.files and "README.md" not in hub.files
