"""A real browser opens reports of models with hostile names: no script runs, no request leaves."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks.names import PHRASES, named
from attacks.parts import examples, save

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What a script that runs leaves in the page, and the host that a picture that is loaded asks for.
_MARK = "document.documentElement.setAttribute('data-ran',1)"
_HOST = "attack.invalid"
_LIVELY = ("script", "style", "comment", "image", "image-address", "quote", "link", "template", "markdown", "json")


class Proxy:
    """Listens where the browser sends all its requests, and remembers what they ask for; answers none."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1)
                try:
                    self.asked.append(connection.recv(2000).decode("latin-1"))
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def opened(page: Path, proxy: Proxy, home: Path) -> str:
    """Returns the page as the browser has it after loading."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}",
            f"--proxy-server=http://127.0.0.1:{proxy.port}", "--proxy-bypass-list=<-loopback>",
            "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.decode("utf-8", "replace")


def lively(phrase: str) -> str:
    return phrase.replace("alert(1)", _MARK)


def test_the_browser_would_show_a_script_that_runs_and_a_picture_that_is_loaded(proxy, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<html><body><script>{_MARK}</script><img src=http://{_HOST}/y.png></body></html>")
    assert "data-ran" in opened(page, proxy, tmp_path / "home").partition(">")[0]
    assert any(_HOST in asked for asked in proxy.asked)


def test_reports_of_hostile_names_run_no_script_and_ask_for_nothing(warm, proxy, tmp_path):
    data, pages = examples(tmp_path), []
    for number, name in enumerate(_LIVELY):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = save(folder, named(lively(PHRASES[name])))
        forced = ("--scheme", "w8a8", "--allow-slower", "-o", folder / "out")
        ran = warm.run("quantize", model, "--data", data, *forced, folder=folder)
        assert ran.code == 0, (name, ran.err)
        pages.append(folder / "out" / "report.html")
    for page, name in zip(pages, _LIVELY, strict=True):
        dom = opened(page, proxy, tmp_path / "home")
        assert "data-ran" not in dom.partition("<head>")[0], name
        if name == "script":  # else the names would be harmless because they are not there
            assert "&lt;script&gt;" in dom
    assert not [asked for asked in proxy.asked if _HOST in asked]
