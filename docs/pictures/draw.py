"""The pictures in docs/pictures: every page of the SIMULATED demo in a headless Chromium, as the README shows them.

    python docs/pictures/draw.py --workspace workspace [--out FOLDER] [--theme dark] [--language zh-TW] [--width 420] [--height 1500]

The workspace has the demo's run (`make run` computes it). What the README shows was drawn with `--height 1500`.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# picture -> where it is; the run and the language are added.
PAGES: Final = {
    "overview": "",
    "train": "train",
    "compute": "compute",
    "distribution": "distribution",
    "quadrants": "distribution?look=quadrants",
    "map": "distribution?look=map",
    "angles": "angles",
    "neighbours": "neighbours",
    "threshold": "threshold?m=1",
    "calibrate": "calibrate",
    "verify": "verify",
    "compare": "compare",
    "findings": "findings",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=ROOT / "workspace")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--language", default="en")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=6_000, help="of a picture at most, in pixels")
    parser.add_argument("--run", help="its id; default: the newest")
    parser.add_argument("pages", nargs="*", default=list(PAGES), help=f"of {', '.join(PAGES)}")
    options = parser.parse_args()
    from conftest import CHROMIUM_ARGUMENTS, start_server, stop_server
    from playwright.sync_api import sync_playwright

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server, process = start_server(options.workspace, ROOT / "app.py", Path(folder) / "server.log")
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_ARGUMENTS)
                for name in options.pages:
                    asked = {"run": options.run, "lang": options.language}
                    query = "&".join(f"{key}={value}" for key, value in asked.items() if value)
                    address = f"{server.url}/{PAGES[name]}{'&' if '?' in PAGES[name] else '?'}{query}"
                    context = browser.new_context(viewport={"width": options.width, "height": 1000}, color_scheme=options.theme)
                    (options.out / f"{name}.png").write_bytes(picture(context.new_page(), address, options.height))
                    context.close()
                    print(options.out / f"{name}.png")
        finally:
            stop_server(process)


def picture(page: Any, address: str, tallest: int) -> bytes:
    """The whole page, from its top, as PNG, in 256 colours: a picture for a README."""
    from conftest import idle, visit

    page.set_default_timeout(120_000)
    visit(page, address)
    page.wait_for_timeout(1_500)  # charts are drawn after the script has ended
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": min(height, tallest)})
    idle(page)
    page.wait_for_timeout(1_500)
    told = io.BytesIO()
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256).save(told, "PNG", optimize=True)
    return told.getvalue()


if __name__ == "__main__":
    main()
