"""Models by their name on the Hugging Face Hub, from a Hub on this machine that speaks what its client needs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

import mmgen
from mmgen.pipelines import hub
from mmgen.pipelines.catalogue import facts, verify
from mmgen.pipelines.sources import is_here
from tests.checkpoints import write_stable_diffusion

NAME = "some-one/a.model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECORDED = f"{NAME}@{COMMIT}"
WEIGHTS = "diffusion_pytorch_model.safetensors"
READ = {
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    "unet/config.json", f"unet/{WEIGHTS}", "vae/config.json", f"vae/{WEIGHTS}",
}  # fmt: skip
# the command line in a process of its own, because huggingface_hub reads the environment when it is imported
COMMAND = """
import sys
{before}
from mmgen.cli.main import main
code = main(sys.argv[1:], quiet=True)
assert "torch" not in sys.modules
sys.exit(code)
"""


class Hub(ThreadingHTTPServer):
    """A Hub with one repository. asked: the requests in their order. gated, broken: it gives no file, or not this."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.commit = COMMIT
        self.asked: list[str] = []
        self.gated = False
        self.broken = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        start = f"GET /{NAME}/resolve/{self.commit}/"
        return {line.removeprefix(start) for line in self.asked if line.startswith(start)}

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in sorted(paths)}


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        api = f"/api/models/{NAME}"
        if path == api or path.startswith(f"{api}/revision/"):
            revision = path.removeprefix(api).removeprefix("/revision/") or "main"
            if revision not in ("main", "v1", self.server.commit):
                return self._send(404, code="RevisionNotFound")
            files = [{"rfilename": name, "size": len(data)} for name, data in self.server.files().items()]
            return self._json({"id": NAME, "sha": self.server.commit, "siblings": files})
        if path == f"{api}/tree/{self.server.commit}":
            return self._json([
                {"type": "file", "path": name, "size": len(data), "oid": _checksum(name, data)}
                for name, data in self.server.files().items()
            ])  # fmt: skip
        file = path.removeprefix(f"/{NAME}/resolve/{self.server.commit}/")
        if file not in self.server.files():
            return self._send(404, code="RepoNotFound")
        if self.server.gated:
            return self._send(403, code="GatedRepo")
        if file == self.server.broken:
            return self._send(403, code="Broken")
        data = self.server.files()[file]
        return self._send(200, data, etag=_checksum(file, data))

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), kind="application/json")

    def _send(
        self, status: int, data: bytes = b"", *, code: str = "", etag: str = "", kind: str = "text/plain"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", self.server.commit)
        if code:
            self.send_header("X-Error-Code", code)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _checksum(name: str, data: bytes) -> str:
    """The sha256 of a large file, the id in git of any other, as the Hub has them."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Person:
    """Somebody at a terminal, with an empty home and the Hub of the test."""

    home: Path
    address: str
    more: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    @property
    def snapshot(self) -> Path:
        return self.cache / "models--some-one--a.model" / "snapshots" / COMMIT

    def types(self, *args: str, before: str = "", stdin: str = "") -> Outcome:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.format(before=before), *args],
            cwd=self.home,
            env={
                **kept,
                "HOME": str(self.home),
                "HF_HOME": str(self.home),
                "HF_ENDPOINT": self.address,
                **self.more,
            },
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as people publish them, with much that is not read. Never to be changed."""
    folder = write_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")
    weights = (folder / "unet" / WEIGHTS).read_bytes()
    for name in (
        "v1-5.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors",
        "other/model.safetensors", "unet/deep/model.safetensors", "unet/diffusion_pytorch_model.bin", "unet/run.py",
        "pipeline.py", "vae/model.onnx", ".gitattributes",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(weights)
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[Hub]:
    with Hub(published) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def person(server: Hub, tmp_path: Path) -> Person:
    return Person(tmp_path, server.address)


@pytest.fixture
def pulled(person: Person, server: Hub) -> Person:
    assert person.types("models", "pull", NAME).code == 0
    server.asked.clear()
    return person


def _size(folder: Path, names: set[str]) -> str:
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{files}, {sum((folder / name).stat().st_size for name in names) / 1e6:,.1f} MB"


def test_what_is_read_is_fetched_and_nothing_else(person: Person, server: Hub) -> None:
    there = {name for name in READ if (server.folder / name).is_file()}
    outcome = person.types("models", "pull", NAME)
    assert (outcome.code, outcome.out) == (0, f"{RECORDED}\n")
    assert outcome.err == f"fetching {RECORDED}: {_size(server.folder, there)}\n"
    assert server.fetched() == there
    assert {
        p.relative_to(person.snapshot).as_posix() for p in person.snapshot.rglob("*") if p.is_file()
    } == there
    assert not [line for line in server.asked if line.endswith((".bin", ".py"))]
    assert list(person.home.iterdir()) == [person.cache]
    again = person.types("models", "pull", NAME)
    assert (again.code, again.out, again.err) == (0, f"{RECORDED}\n", "")


def test_a_variant_is_fetched_where_there_is_nothing_else(
    person: Person, server: Hub, published: Path, tmp_path: Path
) -> None:
    server.folder = Path(shutil.copytree(published, tmp_path / "copy"))
    (server.folder / "unet" / WEIGHTS).unlink()
    (server.folder / "unet" / "pytorch_lora_weights.safetensors").write_bytes(b"other weights")
    assert person.types("models", "pull", NAME).code == 0
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in server.fetched()
    assert person.types("models", "list").out.count(NAME) == 1


def test_a_model_is_fetched_once_and_its_commit_is_recorded(person: Person, server: Hub) -> None:
    (person.home / "prompts.txt").write_text("a cat\n", "utf-8")
    draw = ("batch", "prompts.txt", "--dry-run", "--json", "--model")
    first = person.types(*draw, NAME)
    assert first.code == 0
    assert first.err.startswith(f"fetching {RECORDED}: ")
    request = json.loads(first.out)["request"]
    assert request["model"] == RECORDED
    server.asked.clear()
    server.commit = "f" * 40  # a newer one is not asked for
    for model, more in ((NAME, ()), (RECORDED, ()), (NAME, ("--offline",))):
        outcome = person.types(*draw, model, *more)
        assert (outcome.code, json.loads(outcome.out)["request"]) == (0, request)
        assert "fetching" not in outcome.err
    assert server.asked == []
    assert person.types("models", "pull", NAME).out == f"{NAME}@{'f' * 40}\n"
    assert json.loads(person.types(*draw, NAME).out)["request"]["model"] == f"{NAME}@{'f' * 40}"


def test_a_revision_is_known_by_its_name(person: Person, server: Hub) -> None:
    assert person.types("models", "pull", f"{NAME}@v1").out == f"{RECORDED}\n"
    server.asked.clear()
    outcome = person.types("models", "info", f"{NAME}@v1", "--json")
    told = json.loads(outcome.out)
    assert (told["name"], told["stages"], told["sides"]) == (RECORDED, ["text", "decoder", "vae"], [16])
    assert person.types("models", "info", NAME).code == 3  # main has not been asked for
    assert server.asked == []


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(person: Person, server: Hub, how: str) -> None:
    options = ["--offline"] if how == "--offline" else []
    person.more = {} if options else {how: "1"}
    outcome = person.types("generate", "a cat", "--model", NAME, *options)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(
        f"error: {NAME} is not, or not as a whole, in the cache {person.cache}, and --offline"
    )
    assert f"'mmgen models pull {NAME}'" in outcome.err
    assert person.types("models", "info", NAME).code == 3
    assert server.asked == []


def test_what_was_interrupted_is_not_taken_for_whole_and_goes_on(person: Person, server: Hub) -> None:
    server.broken = f"vae/{WEIGHTS}"
    outcome = person.types("models", "pull", NAME)
    assert outcome.code == 3
    assert outcome.err.count("\n") == 2
    assert person.types("models", "list").out.count(NAME) == 0
    assert person.types("batch", "-", "--dry-run", "--offline", "--model", NAME, stdin="a cat\n").code == 3
    server.broken = ""
    server.asked.clear()
    outcome = person.types("models", "pull", NAME)
    assert outcome.code == 0
    assert f"vae/{WEIGHTS}" in server.fetched()
    assert f"unet/{WEIGHTS}" not in server.fetched()


@pytest.mark.parametrize("lost", ["index.alone", "scheduler", f"unet/{WEIGHTS}", f"vae/{WEIGHTS}"])
def test_what_another_program_fetched_in_part_is_not_taken_for_whole(
    pulled: Person, server: Hub, lost: str
) -> None:
    for path in sorted(pulled.snapshot.rglob("*"), reverse=True):
        name = path.relative_to(pulled.snapshot).as_posix()
        if (
            not path.is_dir()
            and name != "model_index.json"
            and (lost == "index.alone" or name.startswith(lost))
        ):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    assert pulled.types("models", "list").out.count(NAME) == 0
    draw = ("batch", "-", "--dry-run", "--model", NAME)
    outcome = pulled.types(*draw, "--offline", stdin="a cat\n")
    assert outcome.code == 3
    assert outcome.err.startswith(f"error: {NAME} is not, or not as a whole, in the cache")
    assert pulled.types("models", "verify", NAME).code == 3
    assert server.asked == []
    assert pulled.types(*draw, stdin="a cat\n").code == 0
    assert pulled.types("models", "verify", NAME).code == 0


def test_an_index_is_fetched_by_itself(pulled: Person, server: Hub) -> None:
    (pulled.snapshot / "model_index.json").unlink()
    outcome = pulled.types("models", "pull", NAME)
    assert (outcome.code, outcome.out) == (0, f"{RECORDED}\n")
    assert server.fetched() == {"model_index.json"}
    assert not [line for line in server.asked if "/tree/" in line]
    assert (pulled.snapshot / "model_index.json").is_file()


def test_weights_that_are_cut_off_are_damaged(pulled: Person, server: Hub) -> None:
    weights = pulled.snapshot / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    outcome = pulled.types("models", "verify", NAME)
    assert outcome.code == 3
    assert outcome.out.startswith(f"unet/{WEIGHTS} is damaged: ")
    assert server.asked == []


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("unet", "unet/config.json"),
        ("scheduler", "scheduler/scheduler_config.json"),
        ("vae/config.json", "vae/config.json"),
        (f"vae/{WEIGHTS}", "vae has no weights"),
    ],
)
def test_a_folder_without_manifest_that_lacks_a_part_is_not_verified(
    published: Path, tmp_path: Path, lost: str, said: str
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "copy"))
    assert verify(folder) == []
    path = folder / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    (problem,) = verify(folder)
    assert said in problem


def test_a_gated_model(person: Person, server: Hub) -> None:
    server.gated = True
    outcome = person.types("generate", "a cat", "--model", NAME)
    assert outcome.code == 3
    assert f"https://huggingface.co/{NAME}" in outcome.err
    assert "now no token is set" in outcome.err
    person.more = {"HF_TOKEN": "hf_secret"}
    outcome = person.types("models", "pull", NAME)
    assert "now a token is set" in outcome.err
    assert outcome.err.count("\n") == 1
    assert "secret" not in outcome.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/body", "no model 'no/body': there is no such folder, and the Hub has none of that name"),
        (f"{NAME}@never", f"{NAME} has no revision 'never'"),
        ("a--b/c", "no model 'a--b/c': give a folder, or one of storybook, or owner/name of the Hugging"),
        ("a/../b", "no model 'a/../b'"),
    ],
)
def test_a_name_that_is_not_there(person: Person, name: str, said: str) -> None:
    outcome = person.types("generate", "a cat", "--model", name)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f"error: {said}")
    assert outcome.err.count("\n") == 1


def test_without_a_network(person: Person) -> None:
    person.address = "http://127.0.0.1:1"
    outcome = person.types("generate", "a cat", "--model", NAME)
    assert outcome.code == 3
    assert outcome.err.startswith(
        f"error: {NAME} is no folder, it is not in the cache as a whole, and the Hub "
    )
    assert outcome.err.count("\n") == 1


FULL = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10, 9, 1)"
FILLED = """
import huggingface_hub
def no_space(*args, **more): raise OSError(28, "No space left on device")
huggingface_hub.snapshot_download = no_space
"""


@pytest.mark.parametrize(("before", "said"), [(FULL, "has 0.0 MB left"), (FILLED, "the disk is full")])
def test_a_full_disk(person: Person, server: Hub, before: str, said: str) -> None:
    outcome = person.types("models", "pull", NAME, before=before)
    assert outcome.code == 3
    assert said in outcome.err.splitlines()[1]
    assert server.fetched() == {"model_index.json"}


def test_what_could_not_be_used_is_not_fetched(
    person: Person, server: Hub, published: Path, tmp_path: Path
) -> None:
    server.folder = Path(shutil.copytree(published, tmp_path / "copy"))
    index = server.folder / "model_index.json"
    index.write_text(json.dumps({"_class_name": "NewPipeline", "unet": ["a", "B"]}), "utf-8")
    outcome = person.types("models", "pull", NAME)
    assert outcome.code == 3
    assert outcome.err.startswith("error: a.model/model_index.json is of class 'NewPipeline'")
    assert server.fetched() == {"model_index.json"}
    index.unlink()
    assert "has no model_index.json on the Hub" in person.types("models", "pull", NAME).err


def test_a_folder_of_that_name_wins(person: Person, server: Hub, published: Path) -> None:
    shutil.copytree(published, person.home / NAME)
    outcome = person.types("models", "info", NAME, "--json")
    assert json.loads(outcome.out)["name"] == "a.model"
    draw = person.types("batch", "-", "--dry-run", "--json", "--model", NAME, stdin="a cat\n")
    assert json.loads(draw.out)["request"]["model"] == "a.model"
    for command in ("pull", "remove"):
        outcome = person.types("models", command, NAME)
        assert (outcome.code, outcome.err) == (
            2, f"error: {NAME} is a folder, which is used as it is: mmgen neither changes nor removes it\n",
        )  # fmt: skip
    assert server.asked == []


def test_the_cache_is_listed_and_verified(pulled: Person, server: Hub) -> None:
    listed = json.loads(pulled.types("models", "list", "--json").out)
    assert [one["name"] for one in listed] == ["storybook", RECORDED]
    assert listed[1]["bytes"] == sum(
        path.stat().st_size for path in pulled.snapshot.rglob("*") if path.is_file()
    )
    assert [line.split()[0] for line in pulled.types("models", "list").out.splitlines()] == [
        "storybook",
        RECORDED,
    ]
    assert pulled.types("models", "verify", NAME).out == f"{NAME}: every file is as it should be\n"
    for name in (f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"):
        blob = pulled.snapshot / name
        data = bytearray(blob.read_bytes())
        data[-2] ^= 1
        blob.write_bytes(data)
    outcome = pulled.types("models", "verify", NAME)
    assert outcome.code == 3
    assert [line.split(" is damaged")[0] for line in outcome.out.splitlines()] == [
        "scheduler/scheduler_config.json", f"unet/{WEIGHTS}",
    ]  # fmt: skip
    assert server.asked == []


def test_a_model_is_removed_when_that_is_meant(pulled: Person) -> None:
    for answer in ("", "n\n"):
        outcome = pulled.types("models", "remove", NAME, stdin=answer)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"remove {RECORDED}, " in outcome.err
        assert pulled.snapshot.is_dir()
    assert pulled.types("models", "remove", NAME, stdin="y\n").out == f"{RECORDED}\n"
    assert not pulled.snapshot.parent.parent.exists()
    assert pulled.types("models", "remove", NAME, "--yes").code == 3
    assert pulled.types("models", "remove", "storybook", "--yes").code == 2
    assert pulled.types("models", "remove", "nobody", "--yes").code == 2


def test_one_revision_is_removed(pulled: Person, server: Hub) -> None:
    server.commit = "f" * 40
    assert pulled.types("models", "pull", NAME).code == 0
    assert pulled.types("models", "remove", RECORDED, "--yes").out == f"{RECORDED}\n"
    listed = json.loads(pulled.types("models", "list", "--json").out)
    assert [one["name"] for one in listed] == ["storybook", f"{NAME}@{'f' * 40}"]
    assert pulled.types("models", "verify", NAME).code == 0


def test_a_cached_model_is_loaded_under_its_commit(pulled: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(pulled.cache))
    pipe = mmgen.load(NAME, device="cpu", dtype="float32")
    assert pipe.name == RECORDED
    assert pipe.request("a cat", seeds=[1]) == facts(NAME).request("a cat", 1)


def test_a_model_with_a_manifest_is_fetched_as_it_lists(
    person: Person, server: Hub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.folder = tiny_folder
    assert person.types("models", "pull", NAME).code == 0
    assert person.types("models", "verify", NAME).code == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(person.cache))
    pipe = mmgen.load(NAME, device="cpu", dtype="float32")
    assert (pipe.name, pipe.digest) == (RECORDED, facts(tiny_folder).digest)


# ---- what is joined to a model -------------------------------------------------------------------


@pytest.fixture
def loras(server: Hub, tmp_path: Path) -> Path:
    """What the Hub has instead of the model: one LoRA, which lies deeper, and files that are not read."""
    server.folder = tmp_path / "loras"
    (server.folder / "deep").mkdir(parents=True)
    (server.folder / "deep" / "fur.safetensors").write_bytes(b"low-rank changes")
    (server.folder / "README.md").write_text("# fur", "utf-8")
    (server.folder / "fur.bin").write_bytes(b"a pickle")
    return server.folder


def test_a_lora_is_fetched_once_and_its_commit_is_recorded(
    person: Person, server: Hub, published: Path, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = ("batch", "-", "--dry-run", "--json", "--model", str(published), "--lora")
    offline = person.types(*draw, NAME, "--offline", stdin="a cat\n")
    assert offline.code == 3
    assert offline.err.startswith(
        f"error: {NAME}/FILE.safetensors is not in the cache {person.cache}, and --off"
    )
    assert server.asked == []
    first = person.types(*draw, f"{NAME}:0.5", stdin="a cat\n")
    assert first.code == 0
    name = f"{RECORDED}/deep/fur.safetensors"
    assert first.err.startswith(f"fetching {RECORDED}: {_size(loras, {'deep/fur.safetensors'})}\n")
    assert server.fetched() == {"deep/fur.safetensors"}
    request = json.loads(first.out)["request"]
    assert request["model"] == f"sd?lora={name}:0.5"
    server.asked.clear()
    for lora in (NAME, name):
        again = person.types(*draw, f"{lora}:0.5", "--offline", stdin="a cat\n")
        assert (again.code, json.loads(again.out)["request"]) == (0, request)
    assert server.asked == []
    assert person.types("models", "list").out.count(NAME) == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(person.cache))
    assert is_here(f"storybook?lora={name}:0.5")
    assert not is_here(f"storybook?lora={name}x.safetensors:0.5")
    assert not is_here("storybook?lora=fur.safetensors:0.5")
    (person.snapshot / "deep" / "fur.safetensors").write_bytes(b"high-rank changes")
    assert "deep/fur.safetensors is damaged" in verify(f"{published}?lora={name}")[0]


def test_which_of_several_loras_is_said_by_its_file(
    person: Person, server: Hub, published: Path, loras: Path
) -> None:
    draw = ("batch", "-", "--dry-run", "--model", str(published), "--lora")
    (loras / "coat.safetensors").write_bytes(b"others")
    outcome = person.types(*draw, NAME, stdin="a cat\n")
    assert (outcome.code, outcome.err) == (
        2, f"error: {NAME} has several files: write {NAME}/FILE with one of coat.safetensors, deep/fur.safetensors\n",
    )  # fmt: skip
    outcome = person.types(*draw, f"{NAME}/hat.safetensors", stdin="a cat\n")
    assert outcome.code == 3
    assert "has no file 'hat.safetensors' on the Hub" in outcome.err
    assert server.fetched() == set()
    outcome = person.types("models", "pull", f"{NAME}@v1/coat.safetensors")
    assert (outcome.code, outcome.out) == (0, f"{RECORDED}/coat.safetensors\n")
    assert server.fetched() == {"coat.safetensors"}
    assert person.types(*draw, f"{NAME}@v1/coat.safetensors", "--offline", stdin="a cat\n").code == 0
    # it is the only one in the cache, and not on the Hub
    assert person.types(*draw, f"{NAME}@v1", "--offline", stdin="a cat\n").code == 3


def test_a_vae_alone_is_fetched_without_what_lies_beside_it(
    person: Person, server: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.folder = Path(shutil.copytree(published / "vae", tmp_path / "vae"))
    for name in (
        "sd_vae.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
    ):
        (server.folder / name).write_bytes(b"other weights")
    there = {"config.json", WEIGHTS}
    draw = ("batch", "-", "--dry-run", "--json", "--model", str(published), "--vae", NAME)
    assert person.types(*draw, "--offline", stdin="a cat\n").code == 3
    first = person.types(*draw, stdin="a cat\n")
    assert (first.code, server.fetched()) == (0, there)
    assert first.err.startswith(f"fetching {RECORDED}: {_size(server.folder, there)}\n")
    assert json.loads(first.out)["request"]["model"] == f"sd?vae={RECORDED}"
    server.asked.clear()
    assert json.loads(person.types(*draw, stdin="a cat\n").out) == json.loads(first.out)
    assert server.asked == []
    assert person.types("models", "pull", NAME).out == f"{RECORDED}\n"
    assert person.types("models", "list").out.count(NAME) == 0
    as_model = person.types("models", "info", NAME)
    assert as_model.code == 3
    assert f"{NAME} is not, or not as a whole, in the cache" in as_model.err
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(person.cache))
    pipe = mmgen.load(f"{published}?vae={NAME}", device="cpu", dtype="float32")
    assert pipe.name == f"sd?vae={RECORDED}"
    assert is_here(f"storybook?vae={RECORDED}")
    assert verify(f"{published}?vae={NAME}") == []


def test_a_component_of_another_kind_is_not_fetched(
    person: Person, server: Hub, published: Path, tmp_path: Path
) -> None:
    server.folder = Path(shutil.copytree(published / "unet", tmp_path / "unet"))
    outcome = person.types("models", "pull", NAME)
    assert outcome.code == 3
    assert "a.model/config.json is of class 'UNet2DConditionModel', not diffusers." in outcome.err
    assert server.fetched() == {"config.json"}


def test_names_of_files() -> None:
    assert hub.parse_file("a/b") == (hub.HubModel("a/b"), None)
    assert hub.parse_file("a/b@v1") == (hub.HubModel("a/b", "v1"), None)
    assert hub.parse_file("a/b@v1/c/d.safetensors") == (hub.HubModel("a/b", "v1"), "c/d.safetensors")
    for text in ("a", "a.safetensors", "a/b.safetensors", "./a/b.safetensors", "/a/b/c.safetensors", "a/b/c",
                 "a/b//c.safetensors", "a/b/../c.safetensors", "a/b/c.bin"):  # fmt: skip
        assert hub.parse_file(text) is None, text


def test_names() -> None:
    assert hub.parse("a/b@refs/pr/1") == hub.HubModel("a/b", "refs/pr/1")
    for text in (
        "a",
        "a/b/c",
        "/a/b",
        "./a/b",
        "a/b@",
        "a/b@../x",
        "a/b.git",
        "-a/b",
        "a/b@\n",
        "~/b",
        "a\\b/c",
    ):
        assert hub.parse(text) is None, text
    assert hub.recorded_name(Path("models--a--b") / "snapshots" / COMMIT) == f"a/b@{COMMIT}"
    for folder in ("models--a--b/snapshots/main", f"datasets--a--b/snapshots/{COMMIT}", COMMIT):
        assert hub.recorded_name(Path(folder)) is None
