"""A folder of pictures as one page: index.html, which needs no server, loads nothing but the pictures and says how
each was made.

Whatever stands in a picture file or in its name is text of strangers. Every piece of it is escaped, no address and no
script is made of it, and the policy of the page allows only its own script and style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from mmgen.errors import UsageError
from mmgen.images import FORMATS, parse_parameters, read_error, read_metadata, write_new
from mmgen.render.manifest import suffixes
from mmgen.temporary import remove_stale
from mmgen.types import Request
from mmgen.values import written

NAME = "index.html"
MAX_CHARS = 10_000  # of one text; what other tools write into a picture can be megabytes
ALT_CHARS = 200


@dataclass(frozen=True)
class Shown:
    """What the page says of one picture; "" where nothing is known.

    file: its path inside the folder, with / between the parts. size: as in 640x480. settings: all else, by name.
    repeats: whether `mmgen rerun` can draw it again. problem: why little is said.
    """

    file: str
    prompt: str = ""
    seed: str = ""
    size: str = ""
    model: str = ""
    verb: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    repeats: bool = False
    problem: str = ""


def write(folder: Path) -> Path:
    """Write the page of the pictures in a folder and in those below it. Returns its path.

    The page of an earlier call is replaced. Raises UsageError if another file has its name or there are no pictures,
    MachineError where disk, folder or permission is in the way.
    """
    path = folder / NAME
    is_there = os.path.lexists(path)
    if is_there and not _is_gallery(path):
        raise UsageError(f"{path} is no gallery of mmgen and stays as it is: rename it, or move it away")
    names = files(folder)
    if not names:
        raise UsageError(f"the folder {folder} holds no pictures ({', '.join(suffixes(FORMATS))})")
    text = io.BytesIO()
    for piece in page(len(names), (shown(folder, name) for name in names)):
        text.write(piece.encode())
    remove_stale(folder)
    return write_new(path, text.getvalue(), overwrite=is_there)


def files(folder: Path) -> list[str]:
    """Paths inside the folder of the files that may be pictures, sorted; hidden ones and linked folders are left out.

    Raises MachineError if a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise read_error(error, folder) from error

    found = []
    for place, below, names in os.walk(folder, onerror=fail):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and name.lower().endswith(suffixes(FORMATS)) and path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _is_gallery(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except OSError as error:
        raise read_error(error, path) from error


# ---- what is known of a picture ------------------------------------------------------------------


def shown(folder: Path, file: str) -> Shown:
    """What a picture says of itself, as far as it can be read. file: its path inside the folder."""
    path = folder / file
    size = _size(path)
    try:
        metadata = read_metadata(path)
    except UsageError:
        return Shown(file, size=size, problem="its settings cannot be read")
    if metadata["request"] is not None:
        return _of_request(file, size, metadata["request"])
    if metadata["parameters"] is not None:
        return _of_parameters(file, size, metadata["parameters"])
    return Shown(file, size=size, problem="it carries no settings")


def _size(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about very large files, which only the browser will decode
            with Image.open(path, formats=FORMATS) as image:
                return f"{image.width}x{image.height}"
    except Exception:  # noqa: BLE001 - the parsers raise a dozen types on damaged files
        return ""


def _of_request(file: str, size: str, request: Request) -> Shown:
    single = len(request.prompts) == len(request.seeds) == 1
    return Shown(
        file,
        prompt="\n".join(filter(None, request.prompts)),
        seed=", ".join(map(str, request.seeds)),
        size=size,
        model=request.model,
        verb=request.verb,
        settings={name: written(value) for name, value in request.said().items() if name not in _APART},
        repeats=request.verb == "generate" and single,
    )


_APART = ("prompt", "seed", "size", "model", "verb")  # from the settings


def _of_parameters(file: str, size: str, text: str) -> Shown:
    """What another tool wrote, in its own words where they are not understood."""
    try:
        foreign = parse_parameters(text)
    except UsageError:
        return Shown(file, size=size, settings={"parameters": text})
    others = dict(foreign.others)
    model = others.pop("Model", "")
    known = {
        "negative prompt": foreign.negative_prompt,
        "steps": foreign.steps,
        "guidance_scale": foreign.guidance_scale,
        "sampler": foreign.sampler,
    }
    return Shown(
        file,
        prompt=foreign.prompt,
        seed="" if foreign.seed is None else str(foreign.seed),
        size=size,
        model=model,
        settings={name: str(value) for name, value in known.items() if value is not None} | others,
        repeats=True,
    )


# ---- the page ------------------------------------------------------------------------------------


def page(count: int, pictures: Iterable[Shown]) -> Iterator[str]:
    """The page, piece by piece. count: of the pictures."""
    policy = (
        # a page that is opened as a file is no 'self' in every browser
        "default-src 'none'; img-src 'self' file:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{_hash(_STYLE)}'; script-src 'sha256-{_hash(_SCRIPT)}'"
    )
    yield (
        f'{_MARK}<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>mmgen gallery</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>{count:,} picture{'' if count == 1 else 's'}</h1>\n{_FORM}"
        "<p>The commands are for a shell in the folder of this page.</p>\n</header>\n<main>\n"
    )
    for picture in pictures:
        yield _article(picture)
    yield f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"


def _article(picture: Shown) -> str:
    address = quote(os.fsencode(picture.file))
    filters = "".join(f' data-{name}="{_text(getattr(picture, name))}"' for name in ("model", "size", "verb"))
    alt = _text((picture.prompt or _plain(picture.file))[:ALT_CHARS])
    first = {name: getattr(picture, name) for name in ("seed", "size", "model", "verb")}
    settings = _list(picture.settings)
    parts = [
        f"<article{filters}>",
        f'<a href="{address}"><img src="{address}" alt="{alt}" loading="lazy" decoding="async"></a>',
        f'<div class="said">\n<h2>{_text(_plain(picture.file))}</h2>',
        f'<p class="prompt" dir="auto">{_text(picture.prompt)}</p>' if picture.prompt else "",
        _list(first),
        f"<p>{picture.problem}</p>" if picture.problem else "",
        f"<details><summary>settings</summary>{settings}</details>" if settings else "",
        "</div>",
        _command(picture.file) if picture.repeats else "",
        "</article>\n",
    ]
    return "\n".join(filter(None, parts))


def _list(values: Mapping[str, str]) -> str:
    said = (f"<dt>{_text(name)}</dt> <dd>{_text(value)}</dd>" for name, value in values.items() if value)
    listed = " ".join(said)
    return f"<dl>{listed}</dl>" if listed else ""


def _command(file: str) -> str:
    text = _text(f"mmgen rerun {_quoted(file)}")
    return f'<p class="command"><code>{text}</code> <button type="button">copy</button></p>'


def _quoted(file: str) -> str:
    """A path for a shell. What a terminal would act on or not show is written in octal, as bash and zsh read it."""
    if file.startswith("-"):
        file = f"./{file}"
    if file.isprintable():
        return shlex.quote(file)
    plain = (
        c if c.isprintable() and c not in "\\'" else "".join(f"\\{byte:03o}" for byte in os.fsencode(c))
        for c in file
    )
    return f"$'{''.join(plain)}'"


_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _text(value: str) -> str:
    """A text as HTML, for elements and attributes: cut where it is very long, control characters by their numbers."""
    cut = value if len(value) <= MAX_CHARS else f"{value[:MAX_CHARS]} ..."
    return html.escape(_UNSAFE.sub(lambda found: _escaped(found[0]), cut))


def _plain(name: str) -> str:
    """A file's name in which nothing turns the order of the others, or is not seen."""
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_MARK = '<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="mmgen gallery">\n'

_FORM = """<form>
<input type="search" name="q" aria-label="words" placeholder="words" autocomplete="off">
<select name="model" aria-label="model"><option value="">any model</option></select>
<select name="size" aria-label="size"><option value="">any size</option></select>
<select name="verb" aria-label="verb"><option value="">any verb</option></select>
<output name="count"></output>
</form>
"""

_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 1rem; }
header { position: sticky; top: 0; background: Canvas; padding-bottom: .5rem; z-index: 1; }
h1 { font-size: 1.2rem; margin: 0; }
h2 { font-size: .9rem; margin: .3rem 0; }
form, button { display: none; }
.js form { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; }
.js button { display: inline; }
select { max-width: 16rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
article { content-visibility: auto; contain-intrinsic-size: auto 26rem; overflow-wrap: anywhere; }
[hidden] { display: none; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882; }
p, dl { margin: .3rem 0; }
.prompt { max-height: 8rem; overflow: auto; white-space: pre-wrap; }
dt { display: inline; opacity: .7; }
dd { display: inline; margin: 0 .6em 0 0; unicode-bidi: isolate; }
details dl { max-height: 16rem; overflow: auto; }
details dd { display: block; white-space: pre-wrap; }
code { unicode-bidi: isolate; user-select: all; }
"""

_SCRIPT = """
"use strict";
const names = ["model", "size", "verb"];
const fields = document.forms[0].elements;
const articles = [...document.querySelectorAll("article")];
const texts = articles.map((article) => article.querySelector(".said").textContent.toLowerCase());

for (const name of names) {
  const values = new Set(articles.map((article) => article.dataset[name]));
  for (const value of [...values].filter(Boolean).sort()) fields[name].add(new Option(value, value));
}

function show() {
  const words = fields.q.value.toLowerCase().split(/\\s+/);
  const chosen = names.filter((name) => fields[name].value);
  let count = 0;
  articles.forEach((article, index) => {
    article.hidden = !(words.every((word) => texts[index].includes(word))
      && chosen.every((name) => article.dataset[name] === fields[name].value));
    count += !article.hidden;
  });
  fields.count.value = `${count} shown`;
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of ["q", ...names]) fields[name].value = asked.get(name) ?? "";
  show();
}

document.forms[0].addEventListener("submit", (event) => event.preventDefault());
document.forms[0].addEventListener("input", () => {
  const said = [...new FormData(document.forms[0])].filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(said)}`);
  show();
});
document.querySelector("main").addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const code = button.previousElementSibling;
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {
    button.textContent = "press Ctrl+C";
  }
});
window.addEventListener("hashchange", readAddress);
document.documentElement.classList.add("js");
readAddress();
"""
