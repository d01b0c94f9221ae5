"""One sheet of the 32 gallery pictures in their order: samples/gallery/sheet.webp."""

from pathlib import Path

from PIL import Image

from mmgen.images import grid

HERE = Path(__file__).parent


def main() -> None:
    paths = sorted((HERE / "256").glob("*.webp"))
    pictures = [Image.open(path).convert("RGB") for path in paths]
    grid(pictures, columns=8).resize((1280, 640)).save(HERE / "sheet.webp", quality=90)


if __name__ == "__main__":
    main()
